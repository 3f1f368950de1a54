"""A trainer in Python: steps of collectives of every form that mpi4py has of them, of which every result is checked."""

import numpy
from mpi4py import MPI

world = MPI.COMM_WORLD
size = world.size
given, summed = numpy.ones(9000, dtype=numpy.float32), numpy.empty(9000, dtype=numpy.float32)
doubles = numpy.empty(4000)
part, whole = numpy.empty(8000 // size, dtype=numpy.float32), numpy.ones(8000, dtype=numpy.float32)
for step in range(100):
    doubles[:] = step
    request = world.Iallreduce(given, summed)
    world.Allreduce(MPI.IN_PLACE, doubles)
    MPI.Request.Waitall([request])
    world.Reduce_scatter_block(whole, part)
    world.Allgather(part, whole)
    world.Bcast(whole)
    assert (summed == size).all() and (doubles == size * step).all() and (part == size).all()
    whole[:] = 1
print(f"rank {world.rank} of {size}: {MPI.get_vendor()[0]}, {world.allreduce(1)}")
