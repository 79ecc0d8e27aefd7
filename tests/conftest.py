"""What every test stands on: no network, results in a folder of this run, a process left as it was found."""
import os, socket, sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

import warm
from openworld_forget.start import importing

COLLECTING = ExitStack()
COLLECTING.enter_context(importing())        # until tests are collected
ROOT = Path(__file__).resolve().parents[1]
os.chdir(ROOT)
for name, value in dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg', HF_HUB_OFFLINE='1', TRANSFORMERS_VERBOSITY='error', TQDM_DISABLE='1',
                        OWF_FIGURES='', JUPYTER_PLATFORM_DIRS='1', PYDEVD_DISABLE_FILE_VALIDATION='1', TOKENIZERS_PARALLELISM='false').items():
    os.environ.setdefault(name, value)

settings.register_profile('same examples every time', derandomize=True, deadline=None, database=None)
settings.load_profile('same examples every time')

def pytest_configure(config):
    "One server of warm starts for all workers, started by the process that starts them; it imports nothing until it is asked."
    if getattr(config.option, 'numprocesses', None): COLLECTING.close()         # who only shares out collects nothing
    if hasattr(config, 'workerinput') or warm.SERVER in os.environ: return
    scope = warm.server()
    os.environ[warm.SERVER] = scope.__enter__()
    config.add_cleanup(lambda: (scope.__exit__(None, None, None), os.environ.pop(warm.SERVER)))

@pytest.fixture(scope='session', autouse=True)
def own_outputs(tmp_path_factory):
    "Results of tests go to one folder per run, shared by the workers: a test never passes thanks to what lies in outputs/."
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base
    with pytest.MonkeyPatch.context() as m:
        if 'OWF_OUTPUTS' not in os.environ: m.setenv('OWF_OUTPUTS', str(shared/'outputs'))
        yield

@pytest.fixture(scope='session', autouse=True)
def no_network():
    "Connections leave this machine in no test."
    connect = socket.socket.connect
    def local_only(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ('127.0.0.1', '::1', 'localhost'):
            raise OSError(f'tests have no network: {address}')
        return connect(self, address)
    with pytest.MonkeyPatch.context() as m: m.setattr(socket.socket, 'connect', local_only); yield

@pytest.fixture(autouse=True)
def same_process():
    "Undo what running a notebook changes for its neighbours: folder, environment, import path, main module, figures."
    cwd, env, path, main = os.getcwd(), dict(os.environ), list(sys.path), sys.modules['__main__']
    yield
    os.chdir(cwd); sys.path[:] = path; sys.modules['__main__'] = main
    for k in set(os.environ) - set(env): del os.environ[k]
    os.environ.update(env)
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')

def pytest_collection_finish(): COLLECTING.close()

def pytest_collection_modifyitems(config, items):
    "Slow tests run when they are asked for."
    if 'slow' in (config.option.markexpr or ''): return
    for item in items:
        if item.get_closest_marker('slow'): item.add_marker(pytest.mark.skip(reason="slow: minutes. `make test ARGS='-m slow'` runs it"))
