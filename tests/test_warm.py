"The server of warm starts that other tests trust: its forks behave as commands do, and know nothing of each other."
import os, subprocess, sys, time

import nbformat, psutil, pytest

import warm
from conftest import ROOT

def test_a_fork_has_the_surroundings_of_a_command(tmp_path):
    "Folder, arguments, environment, standard input, both outputs and the exit code are those of the same command started for real."
    text = "import os, sys; print(os.getcwd(), sys.argv, os.environ['ONLY'], sys.stdin.read(), __name__, sys.path[0]); print('ü', file=sys.stderr); sys.exit(7)"
    cmd, env = [sys.executable, '-c', text, 'a b', '$x'], {**os.environ, 'ONLY': 'here'}
    a = warm.run(cmd, cwd=tmp_path, env=env, text='told')
    b = subprocess.run(cmd, cwd=tmp_path, env=env, input='told', capture_output=True, text=True)
    assert (a.returncode, a.stdout, a.stderr) == (b.returncode, b.stdout, b.stderr) and a.returncode == 7 and 'told' in a.stdout

def test_forks_know_nothing_of_each_other():
    text = "import os, random, sys; print(hasattr(os, 'seen'), 'openworld_forget.study.main' in sys.modules, random.random()); os.seen = 1"
    a, b = (warm.run([sys.executable, '-c', text]).stdout.split() for _ in range(2))
    assert a[:2] == b[:2] == ['False', 'True']

def test_an_error_is_a_traceback_and_a_kill_is_a_signal():
    r = warm.run([sys.executable, '-c', 'raise ValueError("why")'])
    assert r.returncode == 1 and r.stderr.splitlines()[-1] == 'ValueError: why' and not r.stdout
    assert warm.run([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']).returncode == -9

def test_who_is_not_waited_for_any_more_ends(tmp_path):
    text = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired): warm.run([sys.executable, '-c', text], timeout=3)
    pid, end = int((tmp_path/'pid').read_text()), time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < end: time.sleep(.05)
    assert not psutil.pid_exists(pid)

def test_what_is_read_while_libraries_are_imported_is_refused():
    with pytest.raises(AssertionError, match='HF_HOME'): warm.run([sys.executable, '-c', ''], env={**os.environ, 'HF_HOME': '/x'})

def test_a_package_of_another_place_is_that_one(tmp_path):
    (tmp_path/'openworld_forget').mkdir()
    (tmp_path/'openworld_forget/__init__.py').write_text('here = 1')
    cmd = [sys.executable, '-c', "import sys, openworld_forget as o; print(o.here, [m for m in sys.modules if m.startswith('openworld_forget.')])"]
    assert warm.run(cmd, cwd=tmp_path.parent, env={**os.environ, 'PYTHONPATH': str(tmp_path)}, fresh=True).stdout == '1 []\n'

def test_a_notebook_runs_in_a_kernel_of_its_own_and_shows_its_figures(tmp_path):
    cells = ['x = 1', "import os, matplotlib.pyplot as plt; print(os.environ['ONLY']); plt.plot([1, 2]);"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), tmp_path/'a.ipynb')
    cmd = [sys.executable, '-m', 'papermill', tmp_path/'a.ipynb', tmp_path/'b.ipynb', '-k', 'python3', '--cwd', ROOT, '--no-progress-bar']
    r = warm.run(cmd, env={**os.environ, 'ONLY': 'here', 'MPLBACKEND': 'module://matplotlib_inline.backend_inline'})
    assert r.returncode == 0, r.stderr
    kinds = [(o.output_type, *sorted(o.get('data', {}))) for c in nbformat.read(tmp_path/'b.ipynb', 4).cells for o in c.get('outputs', [])]
    assert ('stream',) in kinds and ('display_data', 'image/png', 'text/plain') in kinds, kinds
