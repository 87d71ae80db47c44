//! What a user types, all the way to the container and back.

use serde_json::json;

use crate::bed::Bed;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_exec_and_attach_work_as_typed() {
    let bed = Bed::new().await;
    bed.script("shell", "echo one; echo two; exec sleep 1000").await;
    bed.until_ready("shell").await;
    bed.until_log("shell", "main", "two").await;
    let run = async |line: &str, stdin: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        bed.kubectl(&words, stdin).await
    };
    assert_eq!(run("logs shell", "").await, (0, "one\ntwo\n".to_owned()));
    assert_eq!(run("logs shell --tail=1 -c main", "").await, (0, "two\n".to_owned()));
    assert_eq!(run("exec shell -- echo hello", "").await, (0, "hello\n".to_owned()));
    assert_eq!(run("exec -i shell -- cat", "typed\n").await, (0, "typed\n".to_owned()));
    let (code, text) = bed.kubectl(&["exec", "shell", "--", "sh", "-c", "exit 7"], "").await;
    assert_eq!((code, text.trim()), (7, "command terminated with exit code 7"));
    let (code, text) = run("exec shell -- /none", "").await;
    assert!(code != 0 && text.contains("/none"), "{text}");
    let (code, text) = run("logs shell -p", "").await;
    assert!(code != 0 && text.contains("previous terminated container \"main\" in pod \"shell\" not found"), "{text}");

    let container =
        json!({"name": "main", "command": ["sh", "-c", "read line; echo got $line"], "stdin": true, "stdinOnce": true});
    bed.pod("listener", json!({"containers": [container], "restartPolicy": "Never"})).await;
    bed.until_ready("listener").await;
    let (code, text) = run("attach -i listener", "words\n").await;
    assert!(code == 0 && text.contains("got words"), "{code} {text}");
    bed.until_phase("listener", "Succeeded").await;
    bed.finish().await;
}
