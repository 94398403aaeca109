//! The committed code is what the `.proto` file generates.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::Path};

use prost::Message;

#[test]
fn committed_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(["portcullis/v1/portcullis.proto"], [root.join("proto")]).unwrap();
    fs::write(out.path().join("descriptor.bin"), descriptors.encode_to_vec()).unwrap();
    tonic_prost_build::configure().out_dir(out.path()).compile_fds(descriptors).unwrap();
    for name in ["portcullis.v1.rs", "descriptor.bin"] {
        let committed = root.join("src/generated").join(name);
        let fresh = fs::read(out.path().join(name)).unwrap();
        if env::var_os("PORTCULLIS_REGENERATE").is_some() {
            fs::write(&committed, fresh).unwrap();
        } else {
            assert!(
                fs::read(&committed).unwrap() == fresh,
                "{} is not what the .proto file generates: PORTCULLIS_REGENERATE=1 cargo test -p portcullis-proto",
                committed.display()
            );
        }
    }
}
