//! What the kernel can do is found out without touching anything.

use net::nft;

use crate::world::{World, within};

#[test]
fn a_kernel_that_runs_the_other_tests_lacks_nothing() {
    let world = World::new(1);
    let (missing, has_table) = within(&world.host, || {
        nft::remove().expect("our own table goes");
        (net::probe::missing_nft_modules(), nft::has_table())
    });
    assert_eq!(missing.expect("there is room for a namespace"), Vec::<&str>::new());
    assert!(!has_table.expect("the kernel answers"), "the table of the probe was elsewhere");
}
