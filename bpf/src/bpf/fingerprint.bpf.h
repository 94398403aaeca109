/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a file is by its content: a hash of the 256 bytes that the kernel has read of it before an exec. src/fingerprint.rs
 * computes the same, and says why it is what it is; a change here is one there.
 */
#ifndef PORTCULLIS_FINGERPRINT_H
#define PORTCULLIS_FINGERPRINT_H

#define HEAD_LEN 256
/* Read in pieces: the stack has 512 bytes for a program and all that it calls. */
#define HEAD_PIECE 64
#define HEAD_PIECE_WORDS (HEAD_PIECE / 8)

/* Which bits of a word of a 64-bit ELF header, followed by its program headers, are meant. */
static __always_inline u64 elf_mask(u32 word)
{
	switch (word) {
	case 0: /* magic, class, byte order; not version and ABI */
		return 0x0000ffffffffffff;
	case 1: /* padding */
		return 0;
	case 2: /* type, machine; not version */
		return 0x00000000ffffffff;
	case 6: /* size of a program header; not flags and size of this header */
		return 0xffff000000000000;
	case 7: /* number of program headers; not those of sections */
		return 0x000000000000ffff;
	}
	/* Physical address and alignment of a segment. */
	if (word >= 8 && ((word - 8) % 7 == 3 || (word - 8) % 7 == 6))
		return 0;
	return ~0ULL;
}

static __always_inline u64 mix(u64 hash, u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15;
	return hash ^ (hash >> 29);
}

/*
 * 0 when it can't be read. Not inline, so that the piece takes no room on the caller's stack; not static, so that the
 * verifier looks at it once.
 */
__attribute__((noinline)) u64 fingerprint(u64 address)
{
	struct linux_binprm *bprm = (void *)address;
	const char *head = __builtin_preserve_access_index(&bprm->buf[0]);
	u64 piece[HEAD_PIECE_WORDS];
	u64 hash = 0;
	/* All bits if the file is not of that form: all of it is meant. */
	u64 opaque = ~0ULL;

	/* With each word's place a constant its mask is one as well; else finding it costs more than all the rest. */
#pragma clang loop unroll(full)
	for (u32 i = 0; i < HEAD_LEN / HEAD_PIECE; i++) {
		if (bpf_probe_read_kernel(piece, sizeof(piece), head + i * HEAD_PIECE)) {
			COUNT(content_read_failed);
			return 0;
		}
		/* "\x7fELF", 64 bits, little-endian, and program headers right after the header. */
		if (i == 0 && (piece[0] & 0x0000ffffffffffff) == 0x00000102464c457f && piece[4] == 64)
			opaque = 0;
#pragma clang loop unroll(full)
		for (u32 word = 0; word < HEAD_PIECE_WORDS; word++) {
			hash = mix(hash, piece[word] & (elf_mask(i * HEAD_PIECE_WORDS + word) | opaque));
			/* One word after the other; else all masks are made first, and kept on the stack. */
			barrier_var(hash);
			barrier_var(opaque);
		}
	}
	if (opaque)
		hash = mix(hash, BPF_CORE_READ(bprm, file, f_inode, i_size));
	return hash ?: 1;
}

#endif
