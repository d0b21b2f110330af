/* As lib/getopts.h. */
#ifndef CLOVIS_INCLUDE_LIB_USER_SPACE_GETOPTS_H
#define CLOVIS_INCLUDE_LIB_USER_SPACE_GETOPTS_H

#include "lib/getopts.h"

#endif
