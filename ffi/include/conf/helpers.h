/* See conf/obj.h. */
#ifndef CLOVIS_INCLUDE_CONF_HELPERS_H
#define CLOVIS_INCLUDE_CONF_HELPERS_H

#include "conf/obj.h"

#endif
