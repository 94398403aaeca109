use std::fs;

use crate::support::{Node, stderr};

#[test]
fn over_tcp_there_is_mutual_tls_or_nothing() {
    let node = Node::new();
    let file = |name: &str| node.directory.path().join(name).display().to_string();
    let tcp = ["policy", "list", "--address", "https://127.0.0.1:1"];
    for (arguments, status, said) in [
        (vec!["policy", "list", "--address", "http://127.0.0.1:9466"], 2, "say https://"),
        (vec!["policy", "list", "--address", "127.0.0.1:9466"], 2, "https://HOST:PORT"),
        (tcp.to_vec(), 2, "--address needs --ca, --cert and --key"),
        ([&tcp[..], &["--server-name", "a b"]].concat(), 2, "\"a b\""),
    ] {
        let output = node.run(&arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
    let (missing, empty) = (file("missing"), file("empty"));
    fs::write(&empty, "").unwrap();
    for (ca, said) in [(&missing, "missing: No such file"), (&empty, "empty: there is nothing of that kind in it")] {
        let output = node.run(&[&tcp[..], &["--ca", ca, "--cert", &empty, "--key", &empty]].concat());
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}
