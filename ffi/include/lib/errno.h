/* Error numbers: the system's. Calls return them negated. */
#ifndef CLOVIS_INCLUDE_LIB_ERRNO_H
#define CLOVIS_INCLUDE_LIB_ERRNO_H

#include <errno.h>

#endif
