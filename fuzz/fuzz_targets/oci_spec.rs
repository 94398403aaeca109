#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| containerd_shim_portcullis_v1::fuzzing::oci_spec(data));
