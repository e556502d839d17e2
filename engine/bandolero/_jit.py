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

sum_kernel = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"}
)
"""As `kernel`, for plain sums of products: their order is free, and a * b + c may be one
rounding, so the compiler may use vector instructions (16 times faster at 528 terms).

nan and inf keep their meaning. The error is that of some order of the same sum, so never
for sums whose bits must agree between two kernels, or that are compensated.
"""
