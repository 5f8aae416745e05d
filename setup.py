"""Compiles the kernels into the package, and goes on without them where it cannot; the rest is in pyproject.toml."""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path("regraft", "kernels")


class BuildWithKernels(build_py):
    """Adds the compiled kernels to the package, or beside their sources where it is installed in place."""

    def run(self):
        super().run()
        build = runpy.run_path(str(KERNELS / "build.py"))
        home = Path() if self.editable_mode else Path(self.build_lib)
        try:
            build["compile_library"](home / KERNELS / build["NAME"])
        except build["BuildError"] as error:
            print(f"regraft: the kernels were not built, torch will compute in their place. {error}", file=sys.stderr)


class WheelOfKernels(bdist_wheel):
    """Holds machine code, but none that knows Python: one wheel of a platform serves all versions."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfKernels})
