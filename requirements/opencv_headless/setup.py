"""Empty distribution named opencv-python; README.md in this folder explains why."""

from setuptools import setup

setup(
    name="opencv-python",
    version="4.14.0.94",
    description="Empty: cv2 is provided by opencv-python-headless",
    packages=[],
    py_modules=[],
)
