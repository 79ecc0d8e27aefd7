"""What does customizing a generative image model break, and how do you stop it?

The names that a script needs, each loaded from its module when it is first used:

    from openworld_forget import cdi_table, customize, data_source, generate, load_world, method, name_histogram

    world = load_world('mini')
    subject = data_source(world).subject('cat-noto', world.resolution)
    adapted, log = customize(world, subject, method('db'))

    prompt, seeds = 'a drawing of a rocket', range(8)
    before, after = ({prompt: name_histogram(generate(w, [prompt]*8, seeds))} for w in (world, adapted))
    print(cdi_table(before, after))
"""
__version__ = "0.0.1"

import os
from typing import TYPE_CHECKING

# transformers says in every notebook that torchvision is missing, which nothing here needs; what the user has set stays
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')

NAMES = {       # module -> what it offers here (`source` reads this table as text: it holds nothing but texts)
    'core': 'ForgetError',
    'show': 'wall',
    'worlds.world': 'World',
    'worlds.load': 'load_world',
    'worlds.data': 'Benchmark DataSource Subject data_source subject_from_folder',
    'worlds.generate': 'generate',
    'training.methods': 'METHODS customize method',
    'training.checkpoints': 'load_adapted',
    'metrics.classify': 'Stages classify',
    'metrics.semantic': 'drift_table',
    'metrics.color': 'cdi cdi_table name_histogram',
}

if TYPE_CHECKING:       # for editors and type checkers, which run no `__getattr__` (a test compares the two lists)
    from .core import ForgetError
    from .show import wall
    from .worlds.world import World
    from .worlds.load import load_world
    from .worlds.data import Benchmark, DataSource, Subject, data_source, subject_from_folder
    from .worlds.generate import generate
    from .training.methods import METHODS, customize, method
    from .training.checkpoints import load_adapted
    from .metrics.classify import Stages, classify
    from .metrics.semantic import drift_table
    from .metrics.color import cdi, cdi_table, name_histogram

_HOME = {name: module for module, names in NAMES.items() for name in names.split()}
__all__ = list(_HOME)

def __getattr__(name: str):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    globals()[name] = value = getattr(import_module(f'.{_HOME[name]}', __name__), name)     # from now on found without this
    return value

def __dir__(): return sorted({*globals(), *_HOME})
