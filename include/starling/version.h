/* The release's version, also the answer of GET /version. */
#ifndef STARLING_VERSION_H
#define STARLING_VERSION_H

#define ST_VERSION "0.1.0"

#endif
