//! A range of addresses of one family.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A network address and prefix length; host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Takes any address of the range.
    ///
    /// # Panics
    /// When `prefix` is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Self {
        let (bits, width) = bits(address);
        assert!(prefix <= width, "prefix /{prefix} is longer than the address");
        let host = u32::from(width - prefix);
        let network = if host == 128 { 0 } else { (bits >> host) << host };
        Self { address: from_bits(network, address.is_ipv4()), prefix }
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && Self::new(ip, self.prefix) == *self
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The address `n` behind the network address.
    pub fn nth(&self, n: u128) -> IpAddr {
        from_bits(bits(self.address).0 + n, self.is_ipv4())
    }
}

fn bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn from_bits(bits: u128, ipv4: bool) -> IpAddr {
    if ipv4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) }
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let prefix: u8 = prefix.parse().map_err(|_| ())?;
        let cidr = (prefix <= bits(address).1).then(|| Self::new(address, prefix)).ok_or(())?;
        // A range written with host bits is a slip of the pen; upstream refuses it too.
        (cidr.address == address).then_some(cidr).ok_or(())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
