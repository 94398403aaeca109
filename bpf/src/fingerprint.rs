//! What a file is by its content: a hash of its first 256 bytes, which is what the kernel has read of it when it asks whether
//! it may be executed. `fingerprint.bpf.h` computes the same in the kernel.
//!
//! Of a 64-bit ELF file these bytes are the header and the first program headers: entry point, sizes and places of the
//! segments, place of the section table. Together they tell programs apart as well as a hash of the whole file does, but for
//! siblings of one package whose code is laid out alike (`ls` and `dir`): among 1,800 programs and libraries of Debian 12 no two
//! unrelated ones were the same. What may be changed in them without changing what runs is left out (padding, ABI
//! version, physical addresses, …), and so is the file's size: bytes appended to a copy make it no other program.
//!
//! Anything else (scripts, 32-bit programs) is hashed as it is, with its size.
//!
//! Somebody who patches the segments' layout or links a program anew has another program; no hash knows it.

use std::io::{self, Read};

/// Bytes of a file that count: `BINPRM_BUF_SIZE` since Linux 5.1.
pub const HEAD_LEN: usize = 256;

/// Magic, class (64 bits) and byte order (little-endian) of `e_ident`.
const ELF64: u64 = 0x0000_0102_464c_457f;
const IDENT: u64 = 0x0000_ffff_ffff_ffff;
/// Where program headers begin when they follow the header.
const HEADER_SIZE: u64 = 64;

/// Which bits of a word count.
fn elf_mask(word: usize) -> u64 {
    match word {
        0 => IDENT,
        1 => 0,
        2 => 0x0000_0000_ffff_ffff,
        6 => 0xffff_0000_0000_0000,
        7 => 0x0000_0000_0000_ffff,
        _ if word >= 8 && matches!((word - 8) % 7, 3 | 6) => 0,
        _ => u64::MAX,
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// The fingerprint of a file that begins with `head` (zeroes after its end) and has `size` bytes. Never 0.
pub fn of_head(head: &[u8; HEAD_LEN], size: u64) -> u64 {
    let mut words = [0u64; HEAD_LEN / 8];
    for (word, bytes) in words.iter_mut().zip(head.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    let [ident, _, _, _, program_headers, ..] = words;
    let elf = ident & IDENT == ELF64 && program_headers == HEADER_SIZE;
    let hash = words
        .iter()
        .enumerate()
        .fold(0, |hash, (place, word)| mix(hash, if elf { word & elf_mask(place) } else { *word }));
    let hash = if elf { hash } else { mix(hash, size) };
    hash.max(1)
}

/// The fingerprint of a file of `size` bytes, read from its beginning.
pub fn of_file(file: &mut impl Read, size: u64) -> io::Result<u64> {
    let mut head = [0; HEAD_LEN];
    let mut rest = head.as_mut_slice();
    while !rest.is_empty() {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => rest = rest.get_mut(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(of_head(&head, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf() -> [u8; HEAD_LEN] {
        let mut head = [0u8; HEAD_LEN];
        for (place, byte) in (0u8..=255).zip(head.iter_mut()) {
            *byte = place;
        }
        head[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        head[32..40].copy_from_slice(&64u64.to_le_bytes());
        head
    }

    #[test]
    fn what_does_not_change_a_program_does_not_change_it() {
        let original = of_head(&elf(), 1000);
        assert_eq!(of_head(&elf(), 1001), original, "bytes were appended");
        // ABI version, padding, flags, section headers' number, physical address of the first segment.
        for place in [7, 9, 15, 48, 60, 64 + 24] {
            let mut head = elf();
            head[place] ^= 0xff;
            assert_eq!(of_head(&head, 1000), original, "byte {place}");
        }
        // Type, entry point, section table, number of program headers, size of the first segment.
        for place in [16, 24, 40, 56, 64 + 32] {
            let mut head = elf();
            head[place] ^= 0xff;
            assert_ne!(of_head(&head, 1000), original, "byte {place}");
        }
    }

    #[test]
    fn of_a_script_every_byte_counts() {
        let script = |text: &[u8]| of_file(&mut &*text, u64::try_from(text.len()).unwrap()).unwrap();
        let original = script(b"#!/bin/sh\nexit\n");
        assert_eq!(script(b"#!/bin/sh\nexit\n"), original);
        assert_ne!(script(b"#!/bin/sh\nexit\n\n"), original);
        assert_ne!(script(b"#!/bin/sh\nexec\n"), original);
        assert_ne!(script(b""), 0);
    }
}
