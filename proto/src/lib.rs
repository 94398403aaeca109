//! The `portcullis.v1` gRPC API.
//!
//! `proto/portcullis/v1/portcullis.proto` is its definition. The code generated from it is committed, so that no build
//! needs a protobuf compiler; `cargo test -p portcullis-proto` compares, and with `PORTCULLIS_REGENERATE=1` rewrites it.
#![forbid(unsafe_code)]

/// Version 1 of the API.
pub mod v1 {
    #![allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]
    include!("generated/portcullis.v1.rs");
}

/// The encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor.bin");
