"""The one place with Numba's flags.

Numba's cache looks at the file of the cached kernel only: a kernel, the kernels it calls
and the states it takes belong in one file.
"""

import numba

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compile a function over arrays and numbers, once per machine, without the GIL.

Division by zero gives inf or nan, as in NumPy. No fast-math: kernels count on nan, inf
and the order of sums.
"""
