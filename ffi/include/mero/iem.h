/* Interesting event messages: none are sent. */
#ifndef CLOVIS_INCLUDE_MERO_IEM_H
#define CLOVIS_INCLUDE_MERO_IEM_H

#include "lib/types.h"

#endif
