use crate::support::*;

#[test]
fn completions_and_manual_pages() {
    let node = Node::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = node.run(&["completions", shell]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("pod-namespace"), "{shell}");
    }
    let directory = node.directory.path().join("man");
    assert!(node.run(&["man", directory.to_str().unwrap()]).status.success());
    for page in [
        "portcullis.1",
        "portcullis-check.1",
        "portcullis-fingerprint.1",
        "portcullis-signals-watch.1",
        "portcullis-policy-suggest.1",
        "portcullis-mode.1",
    ] {
        assert!(directory.join(page).exists(), "{page}");
    }
}
