use portcullis_proto::v1::{Container, Containment};

use crate::support::*;

#[test]
fn shows_what_is_guarded_and_what_is_not() {
    let containment = Some(Containment { frozen: Some(true), network_isolated: true, locked: true });
    let contained = Container { containment, ..container() };
    let unguarded = Container {
        id: "ctr-1".into(),
        guarded: false,
        unguarded_reason: format!("no cgroup {HOSTILE}"),
        pod: None,
        ..container()
    };
    let names_only = Container { id: "ctr-2".into(), contents_unknown: format!("too many {HOSTILE}"), ..container() };
    let ended = Container { id: "old".into(), ended: container().created, ..container() };
    let node = Node::new();
    let _agent =
        Agent::start(&node, Data { containers: vec![contained, unguarded, names_only, ended], ..Data::default() });
    assert_eq!(
        stdout(&node.run(&["containers", "list"])),
        "CONTAINER     IMAGE                    POD             GUARD       MODE     POLICY   MATCHED  STOPPED  LOST  CONTAINED\n\
         0123456789ab  docker.io/library/web:1  shop/web-0/web  guarded     enforce  default  3        2        0     frozen, network isolated, locked\n\
         ctr-1         docker.io/library/web:1  -               UNGUARDED   enforce  default  3        2        0     -\n\
         ctr-2         docker.io/library/web:1  shop/web-0/web  names only  enforce  default  3        2        0     -\n"
    );
    let wide = stdout(&node.run(&["containers", "list", "--ended", "-o", "wide"]));
    assert_eq!(wide.lines().count(), 5);
    for why in ["no cgroup x\\x1b[2J\\nforged", "too many x\\x1b[2J\\nforged"] {
        assert!(wide.contains(why), "{wide}");
    }
    assert_harmless(&wide);
    let json = node.json(&["containers", "list"]);
    assert_eq!(json[0]["counters"]["matched"], 3);
    assert_eq!(json[0]["contentsUnknown"], "");
    assert_eq!(json[1]["guarded"], false);
    assert_eq!(
        (&json[2]["guarded"], &json[2]["contentsUnknown"]),
        (&true.into(), &format!("too many {HOSTILE}").into())
    );
    assert_eq!(json[1]["cgroupId"], 4711);
}
