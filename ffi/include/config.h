/* Programs are built with -include config.h: what earlier builds decided there is decided here, so this only says that it was read. */
#ifndef CLOVIS_INCLUDE_CONFIG_H
#define CLOVIS_INCLUDE_CONFIG_H

#define CLOVIS_CONFIG_H 1

#endif
