"""Stopping, failing, and odd surroundings: signals to the command, to its group and from a terminal; paths with other letters; places that cannot
be written; steps that fail. The steps are tiny notebooks in a project of their own, run by the real engine."""
import os, pty, select, signal, subprocess, sys, tempfile, time
from pathlib import Path

import nbformat, psutil, pytest

from conftest import ROOT

ODD = "my results ü $x 'q' {0}"
STEPS = '''
import sys
from contextlib import nullcontext
from pathlib import Path
import openworld_forget.study.engine as study
from openworld_forget.core import ForgetError
from openworld_forget.study.processes import stoppable
kind, engines, home = sys.argv[1], sys.argv[2].split(), Path(sys.argv[3])
first = study.Step(kind, home/'first', {})
steps = [first, *(study.Step('after', home/f'after-{i}', {}, needs=[first]) for i in range(2))]
launch = {'absent': 'echo no such interpreter >&2; exit 3', 'asleep': 'sleep 600'}
right = study.config
def config(workers, folder):
    c = right(workers, folder)
    if engine in launch: c.executors[0].launch_cmd, study.PATIENCE = launch[engine], 30. if engine == 'absent' else 3.
    return c
study.config = config
with stoppable():
    for engine in engines:
        if engine == 'cold': study.nursed = lambda *_: nullcontext()
        try: print(len(study.execute(steps, workers=1, serial=engine in ('serial', 'cold'))), 'steps were not done')
        except ForgetError as e: print('error:', e)
'''
CELLS = dict(
    forever="open('started', 'w').close()\nwhile True: sum(range(10**5))",
    broken="raise ValueError('the culprit, and\\nthe remedy')",
    killed="import os; os.kill(os.getpid(), 9)",
    alone="import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(600)",
    after="open('after', 'w').close()",
)

def answer_signals():
    "In the child: signals that whoever started the tests ignores (a shell's `&`, nohup) would be ignored by the command, too, and rightly so."
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP): signal.signal(s, signal.SIG_DFL)

@pytest.fixture
def project(tmp_path):
    "A project with tiny templates, its path as people have it; `start` runs the steps as a command of its own."
    home = tmp_path/'a clone ü'
    (home/'nbs/reports').mkdir(parents=True)
    (home/'settings.ini').touch()
    short = tempfile.TemporaryDirectory()                       # pytest's own is too long for a socket
    for name, code in CELLS.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), home/f'nbs/reports/{name}.ipynb')
    (tmp_path/'steps.py').write_text(STEPS)
    class Project:
        seen = []
        out, started, after, tmp = tmp_path/ODD/'demo', home/'started', home/'after', Path(short.name)
        env = {**os.environ, 'OWF_HOME': str(home), 'OWF_OUTPUTS': str(tmp_path/ODD), 'TMPDIR': short.name, 'PYTHONPATH': str(ROOT)}
        cmd = staticmethod(lambda kind, engine: [sys.executable, str(tmp_path/'steps.py'), kind, engine, str(tmp_path/ODD/'demo')])
        def start(self, kind, engine):
            return subprocess.Popen(self.cmd(kind, engine), env=self.env, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=answer_signals)
        def begin(self, pid):
            "Wait until the notebook computes; then everybody who works for it."
            end = time.monotonic() + 900
            p = psutil.Process(pid)
            while not self.started.exists() and time.monotonic() < end and p.status() != psutil.STATUS_ZOMBIE: time.sleep(.1)
            assert self.started.exists()
            self.seen = p.children(recursive=True)
            return self.left()
        def left(self):
            "Who was seen, or carries this run's folder in the environment."
            found = []
            for p in {*self.seen, *psutil.process_iter()}:
                try:
                    if p.status() != psutil.STATUS_ZOMBIE and (p in self.seen or p.environ().get('OWF_OUTPUTS') == self.env['OWF_OUTPUTS']):
                        found.append(p)
                except psutil.Error: pass
            return found
    p = Project()
    yield p
    for x in p.left(): x.kill()                                 # of a test that failed
    short.cleanup()

def test_control_c_in_a_terminal(project):
    """The terminal itself sends the signal, to everything that stands in it, twice: nothing is left when the command returns, one line says so, the
    temporary folder is gone."""
    pid, fd = pty.fork()
    if not pid:
        answer_signals()
        os.execve(sys.executable, project.cmd('forever', 'parsl'), project.env)
    assert len(project.begin(pid)) > 4
    os.write(fd, b'\x03')
    time.sleep(.1)
    os.write(fd, b'\x03')
    said, end = b'', time.monotonic() + 300
    try:
        while time.monotonic() < end:
            if select.select([fd], [], [], 1)[0]: said += os.read(fd, 4096)
    except OSError: pass                                        # the other side is closed
    if time.monotonic() >= end: os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130 and not project.left()
    assert b'Stopped (Ctrl-C)' in said and b'Traceback' not in said, said.decode()
    assert not list(project.tmp.glob('owf-*')) and (project.out/'first/forever.log').exists()
    os.close(fd)

def test_a_signal_to_the_process_group_ends_everything(project):
    "As `timeout` and batch systems send it. Without Parsl."
    p = project.start('forever', 'serial')
    project.begin(p.pid)
    os.killpg(p.pid, signal.SIGTERM)
    said, _ = p.communicate(timeout=100)
    assert p.returncode == 143 and not project.left()
    assert 'Traceback' not in said and said.splitlines()[-1].startswith('Stopped (SIGTERM)'), said

def test_control_z_pauses_the_notebook_too(project):
    "And a terminal that is closed ends it."
    p = project.start('forever', 'serial')
    kernel = max((x for x in project.begin(p.pid)), key=lambda x: len(x.parents()))            # study, nursery, runner, kernel
    def becomes(*states):
        end = time.monotonic() + 60
        while kernel.status() not in states and time.monotonic() < end: time.sleep(.1)
        return kernel.status() in states
    p.send_signal(signal.SIGTSTP)
    assert len(kernel.parents()) >= len(psutil.Process(p.pid).parents()) + 3 and becomes(psutil.STATUS_STOPPED)
    p.send_signal(signal.SIGCONT)
    assert becomes(psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING)
    os.killpg(p.pid, signal.SIGHUP)
    p.communicate(timeout=100)
    assert p.returncode == 129 and not project.left()

def test_the_root_cause_stands_at_the_end(project):
    "Once, with its notebook and log; who needed the step is counted."
    said, _ = project.start('broken', 'parsl').communicate(timeout=600)
    lines = said.rstrip().splitlines()
    assert lines[-1] == '3 steps were not done' and not project.after.exists(), said
    assert lines[-3:-1] == ['  ValueError: the culprit, and', 'the remedy'], said
    assert lines[-5].endswith('first/broken.ipynb') and lines[-4].endswith('first/broken.log') and '2 that need them were not run' in said
    assert 'Dependency' not in said and 'Traceback' not in said

@pytest.mark.parametrize('kind', ['killed', 'alone'])
def test_a_notebook_that_was_killed_is_said_to_have_been(project, kind):
    "Its kernel, or who runs it: then the kernel ends, too."
    said, _ = project.start(kind, 'serial').communicate(timeout=600)
    assert 'the memory was full' in said.splitlines()[-2] and '2 that need them were not run' in said, said

def test_an_engine_that_does_not_start_is_an_error(project):
    "Not a progress bar that stands at 0 %: its pool ends at once; its pool never answers."
    said, _ = project.start('after', 'absent asleep').communicate(timeout=600)
    assert 'no such interpreter' in said and 'started no worker within 3 s' in said and not project.after.exists() and not project.left(), said

def test_steps_run_where_paths_have_other_letters(project):
    """Clone and results with a space, an umlaut, quotes, a dollar and braces in their paths, temporary files in a folder with a space; no home,
    an ASCII locale."""
    project.env = {k: v for k, v in project.env.items() if k not in ('HOME', 'LANG')}
    (odd := project.tmp/'my tmp').mkdir()
    project.env |= dict(TMPDIR=str(odd), LC_ALL='C', PYTHONIOENCODING='ascii')
    if str(ROOT).isascii(): project.env['PYTHONUTF8'] = '0'         # from another path torch itself cannot be imported then
    said, _ = project.start('after', 'parsl').communicate(timeout=600)
    assert said.splitlines()[-1] == '0 steps were not done' and project.after.exists(), said

def test_a_step_starts_without_a_nursery(project):
    "Where a fork is not safe: the plain command."
    said, _ = project.start('after', 'cold').communicate(timeout=600)
    assert said.splitlines()[-1] == '0 steps were not done' and project.after.exists(), said

def test_a_template_by_hand_writes_into_a_scratch_study(tmp_path, monkeypatch):
    "Wherever its kernel stands; its budget can be given; what is missing is said with the command that makes it; a wrong seed is one error."
    from openworld_forget.core import ForgetError, root
    from openworld_forget.study.records import BUDGETS
    from openworld_forget.study.run import Run
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    monkeypatch.chdir(root()/'nbs/reports')
    run = Run('studies/smoke.yaml', concept='cat-noto', method='db', budget='quick')
    assert run.home.parent == tmp_path/'scratch' and run.limits == BUDGETS['quick'] and str(run.home) in run.where()
    assert run.home != Run('studies/smoke.yaml', concept='cat-noto', method='db').home
    assert Run('studies/smoke.yaml', key='k').where() == '' and Run('studies/smoke.yaml', 'outputs/mine').home == root()/'outputs/mine'
    with pytest.raises(ForgetError, match=r'no results of base and customize(?s:.*)customize.ipynb .* -r budget quick -r concept cat-noto'):
        run.require('base', 'customize')
    for bad in ('abc', '1.5', -1):
        with pytest.raises(ForgetError, match='whole number'): Run('studies/smoke.yaml', seed=bad)
    with pytest.raises(ForgetError, match="Did you mean 'smoke'"): Run('studies/smoke.yaml', budget='smok')

def test_every_template_can_be_run_by_hand():
    "It has a budget and a folder to choose, asks for what it needs, and ends with where the results are."
    for f in sorted((ROOT/'nbs/reports').glob('*.ipynb')):
        cells = [c.source for c in nbformat.read(f, 4).cells if c.cell_type == 'code']
        assert 'print(' in cells[-1] and ('run.where()' in cells[-1] or 'Results' in cells[-1]), f
        if f.stem != 'speed': assert "budget = ''" in cells[0] and "home = ''" in cells[0] and 'run.require(' in cells[2], f

def test_results_that_cannot_be_written_are_found_before_the_work(tmp_path, monkeypatch, capsys):
    import shutil
    from openworld_forget.study.main import main
    (tmp_path/'file').touch()
    for where, says in ((tmp_path/'file', 'a file is in the way'), (tmp_path/('x'*300), 'File name too long')):
        monkeypatch.setenv('OWF_OUTPUTS', str(where))
        assert main([str(ROOT/'studies/smoke.yaml')]) == 2 and says in capsys.readouterr().err
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'full'))
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: type('', (), {'free': 2**21}))
    assert main([str(ROOT/'studies/smoke.yaml')]) == 2 and '2 MiB left' in capsys.readouterr().err and not (tmp_path/'full').exists()
