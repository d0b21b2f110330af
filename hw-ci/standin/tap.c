/*
 * Somebody on the wire: a tap that writes down every byte that leaves (`tap=PATH`), and a hand that changes what arrives, once
 * (`tamper=KIND:HOW:BYTES`): the first SEND, READ or WRITE of exactly so many bytes. `flip` turns one bit over, `cut` takes the second half away
 * (a SEND gets shorter, memory keeps zeros there), `splice` puts the bytes of the one before it, of the same kind and length, in its place.
 */
#include "standin.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int tap_fd = -1;
static unsigned char *before;
static bool is_over;

void tap_take(const struct iovec *parts, int count, uint64_t bytes)
{
	if (!config.tap[0])
		return;
	if (tap_fd < 0)
		tap_fd = open(config.tap, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	for (int index = 0; index < count && bytes > 0; index++) {
		uint64_t some = parts[index].iov_len < bytes ? parts[index].iov_len : bytes;
		/* A tap that leaks would let a test pass that looks for something in it. */
		if (write(tap_fd, parts[index].iov_base, some) != (ssize_t)some) {
			perror("CLOVIS_STANDIN: tap");
			_Exit(97);
		}
		bytes -= some;
	}
}

static void copy(const struct iovec *parts, int count, unsigned char *flat, bool is_out)
{
	for (int index = 0; index < count; index++) {
		if (is_out)
			memcpy(flat, parts[index].iov_base, parts[index].iov_len);
		else
			memcpy(parts[index].iov_base, flat, parts[index].iov_len);
		flat += parts[index].iov_len;
	}
}

uint32_t tamper(enum fault_kind kind, const struct iovec *parts, int count, uint32_t bytes)
{
	if (kind != config.tamper_kind || bytes != config.tamper_bytes || is_over)
		return bytes;
	unsigned char *flat = malloc(bytes);
	if (!flat)
		abort();
	copy(parts, count, flat, true);
	uint32_t left = bytes;
	switch (config.tamper) {
	case TAMPER_FLIP:
		flat[bytes / 2] ^= 0x10;
		break;
	case TAMPER_CUT:
		memset(flat + bytes / 2, 0, bytes - bytes / 2);
		left = kind == FAULT_SEND ? bytes / 2 : bytes;
		break;
	case TAMPER_SPLICE:
		if (!before) {
			before = flat;
			return bytes;
		}
		memcpy(flat, before, bytes);
		break;
	}
	is_over = true;
	fprintf(stderr, "CLOVIS_STANDIN: %u bytes were tampered with\n", bytes);
	copy(parts, count, flat, false);
	free(flat);
	return left;
}
