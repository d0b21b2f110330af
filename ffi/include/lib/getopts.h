/* Options of command lines: the system's getopt, under the name that programs include. */
#ifndef CLOVIS_INCLUDE_LIB_GETOPTS_H
#define CLOVIS_INCLUDE_LIB_GETOPTS_H

#include "lib/types.h"
#include <getopt.h>

#endif
