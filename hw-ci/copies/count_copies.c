/*
 * Put in front of a program by LD_PRELOAD, it counts what the program copies by memcpy and memmove: calls of at least 64 KiB, and the bytes
 * of all calls. Buffers of bulk are longer; headers, messages and values that are moved in memory are shorter. At the end of the process the figures are
 * written to the file that COUNT_COPIES_INTO names, one line: `LARGE_CALLS LARGE_BYTES SMALL_BYTES`.
 *
 * memset is not counted: fresh memory is cleared once, before it carries anything.
 */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

enum { LARGE = 65536 };

static _Atomic unsigned long large_calls, large_bytes, small_bytes;

static void count(size_t bytes)
{
	if (bytes >= LARGE) {
		atomic_fetch_add_explicit(&large_calls, 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&large_bytes, bytes, memory_order_relaxed);
	} else {
		atomic_fetch_add_explicit(&small_bytes, bytes, memory_order_relaxed);
	}
}

/* The copying itself by the string instruction: looking the real ones up by dlsym would copy. */
void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
	void *start = to;
	count(bytes);
#if defined(__x86_64__)
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
#else
	for (volatile unsigned char *at = to; bytes; bytes--)
		*at++ = *(const unsigned char *)from, from = (const unsigned char *)from + 1;
#endif
	return start;
}

void *memmove(void *to, const void *from, size_t bytes)
{
	count(bytes);
	volatile unsigned char *into = to;
	const volatile unsigned char *source = from;
	if ((const unsigned char *)to <= (const unsigned char *)from)
		for (size_t index = 0; index < bytes; index++)
			into[index] = source[index];
	else
		while (bytes--)
			into[bytes] = source[bytes];
	return to;
}

static __attribute__((destructor)) void tell(void)
{
	const char *path = getenv("COUNT_COPIES_INTO");
	FILE *file = path ? fopen(path, "w") : NULL;
	if (!file)
		return;
	fprintf(file, "%lu %lu %lu\n", large_calls, large_bytes, small_bytes);
	fclose(file);
}
