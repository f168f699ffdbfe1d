"""Devices and processes: the mesh, hosts that work together, what crosses between devices."""
