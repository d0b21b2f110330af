/* See mero/init.h. */
#ifndef CLOVIS_INCLUDE_MOTR_INIT_H
#define CLOVIS_INCLUDE_MOTR_INIT_H

#include "mero/init.h"

#endif
