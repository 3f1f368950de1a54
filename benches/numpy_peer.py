"""The sums of one sampled step with NumPy, tensor by tensor, as an evaluation script takes them.

Per tensor: sum of squares, peak, non-finite count, inner product with the reference, conflicting signs and their mass.
No sketch: NumPy has no fast way to make one, which flatters NumPy. Prints seconds per element, best of five.
"""

import sys
import time

import numpy as np

TENSORS = 8


def measure(gradient, reference):
    product = gradient * reference
    opposing = product < 0
    return (
        float(np.dot(gradient, gradient)),
        float(np.abs(gradient).max()),
        gradient.size - int(np.isfinite(gradient).sum()),
        float(product.sum()),
        int(opposing.sum()),
        int((product != 0).sum()),
        float(-product[opposing].sum()),
        float(np.dot(product, product)),
    )


def main():
    size = int(sys.argv[1])
    rng = np.random.default_rng(1)
    tensors = [rng.standard_normal(size, dtype=np.float32) for _ in range(TENSORS)]
    references = [rng.standard_normal(size, dtype=np.float32) for _ in range(TENSORS)]
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for gradient, reference in zip(tensors, references):
            measure(gradient, reference)
        best = min(best, time.perf_counter() - start)
    print(best / (size * TENSORS))


main()
