"""Where a training step's time goes, against the convolutions alone. See `step_profile.py`, which this runs.

python benchmarks/profile.py [--json PATH] [--workload cifar dvs resnet19]
"""

from __future__ import annotations

if __name__ == "__main__":
    from step_profile import main

    main()
elif __name__ == "profile":
    # A script's folder comes first on Python's path, so beside this file `import profile` means this one, also to the
    # standard library's cProfile, which torch imports with its optimisers: become the module that is meant.
    import importlib.machinery
    import sys
    import sysconfig

    _spec = importlib.machinery.PathFinder.find_spec("profile", [sysconfig.get_path("stdlib")])
    assert _spec is not None
    assert _spec.loader is not None
    _spec.loader.exec_module(sys.modules[__name__])
