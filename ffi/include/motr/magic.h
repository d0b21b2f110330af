/* See mero/magic.h. */
#ifndef CLOVIS_INCLUDE_MOTR_MAGIC_H
#define CLOVIS_INCLUDE_MOTR_MAGIC_H

#include "mero/magic.h"

#endif
