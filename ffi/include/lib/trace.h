/*
 * A program's own trace. Levels from WARN on go to standard error as one line each; with CLOVIS_TRACE=debug in the environment all do.
 * M0_ENTRY and M0_LEAVE check their formats and print nothing. A program may define M0_TRACE_SUBSYSTEM, before this or after: it is not looked at.
 */
#ifndef CLOVIS_INCLUDE_LIB_TRACE_H
#define CLOVIS_INCLUDE_LIB_TRACE_H

#include "lib/types.h"
#include "lib/errno.h"
#include <stdarg.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum m0_trace_level {
	M0_NONE = 0,
	M0_ALWAYS = 1 << 0,
	M0_FATAL = 1 << 1,
	M0_ERROR = 1 << 2,
	M0_WARN = 1 << 3,
	M0_NOTICE = 1 << 4,
	M0_INFO = 1 << 5,
	M0_DEBUG = 1 << 6,
	M0_CALL = 1 << 7
};

enum m0_trace_subsystem {
	M0_TRACE_SUBSYS_OTHER = 1 << 0,
	M0_TRACE_SUBSYS_UT = 1 << 1,
	M0_TRACE_SUBSYS_LIB = 1 << 2,
	M0_TRACE_SUBSYS_NET = 1 << 3,
	M0_TRACE_SUBSYS_RPC = 1 << 4,
	M0_TRACE_SUBSYS_LAYOUT = 1 << 5,
	M0_TRACE_SUBSYS_CONF = 1 << 6,
	M0_TRACE_SUBSYS_CLOVIS = 1 << 7,
	M0_TRACE_SUBSYS_CLIENT = M0_TRACE_SUBSYS_CLOVIS,
	M0_TRACE_SUBSYS_ST = 1 << 8,
	M0_TRACE_SUBSYS_HA = 1 << 9,
	M0_TRACE_SUBSYS_HSM = 1 << 10,
	M0_TRACE_SUBSYS_DIX = 1 << 11
};

/* One finished line of a program's trace. */
void m0_trace_text(unsigned level, const char *file, int line, const char *function, const char *text);
/* Accepted for programs that ask for their trace in memory: there is no such buffer. */
void m0_trace_set_mmapped_buffer(bool wanted);
int m0_trace_set_immediate_mask(const char *mask);
int m0_trace_set_level(const char *level);

__attribute__((format(printf, 5, 6), unused)) static inline void
m0_trace_line_(unsigned level, const char *file, int line, const char *function, const char *format, ...)
{
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	m0_trace_text(level, file, line, function, text);
}

/* Formats are checked, nothing is evaluated twice, nothing is printed. */
__attribute__((format(printf, 1, 2), unused)) static inline void m0_trace_nothing_(const char *format, ...)
{
	(void)format;
}

__attribute__((format(printf, 1, 2), unused)) static inline int m0_console_printf(const char *format, ...)
{
	va_list arguments;
	int printed;

	va_start(arguments, format);
	printed = vprintf(format, arguments);
	va_end(arguments);
	fflush(stdout);
	return printed;
}

__attribute__((unused)) static inline int m0_trace_error_(int rc, const char *file, int line, const char *function)
{
	if (rc != 0)
		m0_trace_line_(M0_ERROR, file, line, function, "error %d", rc);
	return rc;
}

#define M0_LOG(level, ...) m0_trace_line_((level), __FILE__, __LINE__, __func__, __VA_ARGS__)
#define M0_ENTRY(...) (0 ? m0_trace_nothing_(" " __VA_ARGS__) : (void)0)
#define M0_LEAVE(...) (0 ? m0_trace_nothing_(" " __VA_ARGS__) : (void)0)
#define M0_RC(rc) (rc)
#define M0_RC_INFO(rc, ...) (rc)
#define M0_ERR(rc) m0_trace_error_((rc), __FILE__, __LINE__, __func__)
#define M0_ERR_INFO(rc, ...) (M0_LOG(M0_ERROR, __VA_ARGS__), (rc))

#ifdef __cplusplus
}
#endif

#endif
