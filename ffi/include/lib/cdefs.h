/*
 * Words of the language that all other headers use. Everything works in C99 and later with GNU extensions switched on or off,
 * and in C++11 and later; M0_INTERNAL and M0_EXTERN may be given on the command line.
 */
#ifndef CLOVIS_INCLUDE_LIB_CDEFS_H
#define CLOVIS_INCLUDE_LIB_CDEFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <inttypes.h>

#ifndef M0_INTERNAL
#define M0_INTERNAL
#endif
#ifndef M0_EXTERN
#define M0_EXTERN extern
#endif

#define M0_UNUSED __attribute__((unused))
#define M0_PACKED __attribute__((packed))
#ifndef __attribute_pure
#define M0_PURE __attribute__((pure))
#endif

#ifndef likely
#define likely(condition) __builtin_expect(!!(condition), 1)
#endif
#ifndef unlikely
#define unlikely(condition) __builtin_expect(!!(condition), 0)
#endif

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif
#define IS_IN_ARRAY(index, array) ((size_t)(index) < ARRAY_SIZE(array))

/* The structure that holds `member` at `pointer`. */
#ifndef container_of
#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))
#endif

/* Implication and equivalence of conditions. */
#define ergo(condition, consequence) (!(condition) || (consequence))
#define equi(one, other) (!(one) == !(other))

#define M0_CAT(left, right) M0_CAT_EXPANDED_(left, right)
#define M0_CAT_EXPANDED_(left, right) left##right
#define M0_COUNT_PARAMS(...) M0_COUNT_PARAMS_(__VA_ARGS__, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define M0_COUNT_PARAMS_(p1, p2, p3, p4, p5, p6, p7, p8, p9, count, ...) count

/* sizeof of a member, and a cast that keeps C++ content. */
#define sizeof_field(type, member) (sizeof(((type *)0)->member))
#ifdef __cplusplus
#define M0_CAST_LIKE_(lvalue, pointer) (reinterpret_cast<__typeof__(lvalue)>(pointer))
#else
#define M0_CAST_LIKE_(lvalue, pointer) (pointer)
#endif

#endif
