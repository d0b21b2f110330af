/* See layout/layout.h. */
#ifndef CLOVIS_INCLUDE_LAYOUT_PDCLUST_H
#define CLOVIS_INCLUDE_LAYOUT_PDCLUST_H

#include "layout/layout.h"

#endif
