/* Small things that programs lean on: bit sets, set membership, quantified conditions, zeroing. */
#ifndef CLOVIS_INCLUDE_LIB_MISC_H
#define CLOVIS_INCLUDE_LIB_MISC_H

#include "lib/types.h"
#include "lib/assert.h"
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define M0_SET0(object) ((void)memset((object), 0, sizeof *(object)))
#define M0_SET_ARR0(array) ((void)memset((array), 0, sizeof(array)))
#define M0_IS0(object) m0_is_all_zeros_((object), sizeof *(object))

static inline bool m0_is_all_zeros_(const void *bytes, size_t count)
{
	const unsigned char *at = (const unsigned char *)bytes;

	while (count > 0 && *at == 0) {
		++at;
		--count;
	}
	return count == 0;
}

/* Bit `number` of a 64-bit set, and the union of up to nine of them. */
#define M0_BIT_(number) (1ULL << (number))
#define M0_BITS(...) (M0_CAT(M0_BITS_, M0_COUNT_PARAMS(__VA_ARGS__))(__VA_ARGS__))
#define M0_BITS_1(a) M0_BIT_(a)
#define M0_BITS_2(a, b) M0_BIT_(a) | M0_BIT_(b)
#define M0_BITS_3(a, b, c) M0_BITS_2(a, b) | M0_BIT_(c)
#define M0_BITS_4(a, b, c, d) M0_BITS_3(a, b, c) | M0_BIT_(d)
#define M0_BITS_5(a, b, c, d, e) M0_BITS_4(a, b, c, d) | M0_BIT_(e)
#define M0_BITS_6(a, b, c, d, e, f) M0_BITS_5(a, b, c, d, e) | M0_BIT_(f)
#define M0_BITS_7(a, b, c, d, e, f, g) M0_BITS_6(a, b, c, d, e, f) | M0_BIT_(g)
#define M0_BITS_8(a, b, c, d, e, f, g, h) M0_BITS_7(a, b, c, d, e, f, g) | M0_BIT_(h)
#define M0_BITS_9(a, b, c, d, e, f, g, h, i) M0_BITS_8(a, b, c, d, e, f, g, h) | M0_BIT_(i)

/* M0_IN(x, (a, b, c)): true if x is one of up to nine values. x is evaluated once. */
#define M0_IN(x, set) \
	(__extension__({ \
		const __typeof__(x) m0_in_x_ = (x); \
		M0_IN_SET_(m0_in_x_, M0_IN_LIST_ set); \
	}))
#define M0_IN_LIST_(...) __VA_ARGS__
#define M0_IN_SET_(...) M0_IN_SET_EXPANDED_(__VA_ARGS__)
#define M0_IN_SET_EXPANDED_(x, ...) (M0_CAT(M0_IN_, M0_COUNT_PARAMS(__VA_ARGS__))(x, __VA_ARGS__))
#define M0_IN_1(x, a) (x) == (a)
#define M0_IN_2(x, a, b) (x) == (a) || (x) == (b)
#define M0_IN_3(x, a, b, c) M0_IN_2(x, a, b) || (x) == (c)
#define M0_IN_4(x, a, b, c, d) M0_IN_3(x, a, b, c) || (x) == (d)
#define M0_IN_5(x, a, b, c, d, e) M0_IN_4(x, a, b, c, d) || (x) == (e)
#define M0_IN_6(x, a, b, c, d, e, f) M0_IN_5(x, a, b, c, d, e) || (x) == (f)
#define M0_IN_7(x, a, b, c, d, e, f, g) M0_IN_6(x, a, b, c, d, e, f) || (x) == (g)
#define M0_IN_8(x, a, b, c, d, e, f, g, h) M0_IN_7(x, a, b, c, d, e, f, g) || (x) == (h)
#define M0_IN_9(x, a, b, c, d, e, f, g, h, i) M0_IN_8(x, a, b, c, d, e, f, g, h) || (x) == (i)

/* True if the condition holds for every (some) value of `var` from 0 below `nr`. */
#define m0_forall(var, nr, ...) \
	(__extension__({ \
		size_t m0_count_##var = (size_t)(nr); \
		size_t var = 0; \
		while (var < m0_count_##var && (__VA_ARGS__)) \
			++var; \
		var == m0_count_##var; \
	}))
#define m0_exists(var, nr, ...) (!m0_forall(var, nr, !(__VA_ARGS__)))

#define min_type(type, a, b) \
	(__extension__({ type m0_a_ = (a); type m0_b_ = (b); m0_a_ < m0_b_ ? m0_a_ : m0_b_; }))
#define max_type(type, a, b) \
	(__extension__({ type m0_a_ = (a); type m0_b_ = (b); m0_a_ > m0_b_ ? m0_a_ : m0_b_; }))
#define min_check(a, b) min_type(__typeof__(a), a, b)
#define max_check(a, b) max_type(__typeof__(a), a, b)
#define min64u(a, b) min_type(uint64_t, a, b)
#define max64u(a, b) max_type(uint64_t, a, b)
#define min32u(a, b) min_type(uint32_t, a, b)
#define max32u(a, b) max_type(uint32_t, a, b)

/* A hash of `length` bytes of a name. */
uint64_t m0_full_name_hash(const unsigned char *name, unsigned int length);

/* Reads a count with an optional suffix b, k, K, m, M, g, G (powers of 1024 for the small letters and K, M, G alike). -EINVAL, -EOVERFLOW. */
int m0_bcount_get(const char *text, m0_bcount_t *count);

static inline uint64_t m0_round_up(uint64_t value, uint64_t step)
{
	return (value + step - 1) / step * step;
}

static inline uint64_t m0_round_down(uint64_t value, uint64_t step)
{
	return value / step * step;
}

static inline bool m0_is_po2(uint64_t value)
{
	return (value & (value - 1)) == 0;
}

static inline uint64_t m0_align(uint64_t value, uint64_t power_of_two)
{
	return (value + power_of_two - 1) & ~(power_of_two - 1);
}

static inline bool m0_is_aligned(uint64_t value, uint64_t power_of_two)
{
	return (value & (power_of_two - 1)) == 0;
}

#ifdef __cplusplus
}
#endif

#endif
