/* See helpers/ufid.h. */
#ifndef CLOVIS_INCLUDE_HELPERS_HELPERS_H
#define CLOVIS_INCLUDE_HELPERS_HELPERS_H

#include "helpers/ufid.h"

#endif
