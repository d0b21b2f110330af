/* Checks of a program's own conditions. A false one says where and ends the process. */
#ifndef CLOVIS_INCLUDE_LIB_ASSERT_H
#define CLOVIS_INCLUDE_LIB_ASSERT_H

#include "lib/cdefs.h"
#include <stdio.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

__attribute__((noreturn, unused)) static inline void m0_assertion_failed_(const char *what, const char *file, int line,
									  const char *function)
{
	fprintf(stderr, "%s:%d: %s: not true: %s\n", file, line, function, what);
	abort();
}

#define M0_ASSERT(condition) \
	((condition) ? (void)0 : m0_assertion_failed_(#condition, __FILE__, __LINE__, __func__))
#define M0_PRE(condition) M0_ASSERT(condition)
#define M0_POST(condition) M0_ASSERT(condition)
#define M0_INVARIANT_EX(condition) M0_ASSERT(condition)
#define M0_ASSERT_EX(condition) M0_ASSERT(condition)
#define M0_PRE_EX(condition) M0_ASSERT(condition)
#define M0_POST_EX(condition) M0_ASSERT(condition)
#define M0_ASSERT_INFO(condition, ...) M0_ASSERT(condition)
#define M0_CHECK_EX(condition) (condition)
#define M0_IMPOSSIBLE(...) m0_assertion_failed_("impossible: " #__VA_ARGS__, __FILE__, __LINE__, __func__)
#define _0C(condition) (condition)

/* At compile time: CASSERT is a statement, BASSERT a declaration, inside functions and outside. */
#define M0_CASSERT(condition) ((void)sizeof(char[(condition) ? 1 : -1]))
#define M0_BASSERT(condition) extern char m0_build_assertion_[(condition) ? 1 : -1] __attribute__((unused))
#ifdef __cplusplus
#define M0_BUILD_CHECK_(condition) static_assert(condition, #condition)
#else
#define M0_BUILD_CHECK_(condition) \
	extern int M0_CAT(m0_build_check_, __LINE__)[(condition) ? 1 : -1] __attribute__((unused))
#endif

#ifdef __cplusplus
}
#endif

#endif
