"""Kernels for devices, as source. They also compile as plain C++, so that their logic is tested where no device is."""
