/* Strings, with the C library's own beside them. */
#ifndef CLOVIS_INCLUDE_LIB_STRING_H
#define CLOVIS_INCLUDE_LIB_STRING_H

#include "lib/types.h"
#include <string.h>
#include <strings.h>
#include <stdio.h>
#include <stdlib.h>
#include <ctype.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A copy to be freed with m0_free, or NULL. */
char *m0_strdup(const char *text);
static inline bool m0_streq(const char *left, const char *right)
{
	return strcmp(left, right) == 0;
}

static inline bool m0_strcaseeq(const char *left, const char *right)
{
	return strcasecmp(left, right) == 0;
}

static inline bool m0_startswith(const char *prefix, const char *text)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

#ifdef __cplusplus
}
#endif

#endif
