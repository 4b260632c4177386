// See runtime.h.

#include "runtime.h"
