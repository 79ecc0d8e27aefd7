"""Stopping, failing, and odd surroundings: signals to the command, to its group and from a terminal; paths with other letters; places that cannot
be written; steps that fail. The steps are tiny notebooks in a project of their own, run by the real engine."""
import os, pty, signal, subprocess, sys, time

import nbformat, psutil, pytest

from conftest import ROOT

ODD = "my results ü $x 'q' {0}"
STEPS = '''
import sys
from pathlib import Path
import openworld_forget.study as study
kind, engine, home = sys.argv[1], sys.argv[2], Path(sys.argv[3])
first = study.Step(kind, home/'first', {})
steps = [first, *(study.Step('after', home/f'after-{i}', {}, needs=[first]) for i in range(2))]
if engine in ('absent', 'asleep'):
    right = study.config
    def wrong(workers, folder):
        c = right(workers, folder)
        c.executors[0].launch_cmd = {'absent': 'echo no such interpreter >&2; exit 3', 'asleep': 'sleep 600'}[engine]
        return c
    study.config, study.PATIENCE = wrong, 3.
with study.stoppable():
    try: print(len(study.execute(steps, workers=1, serial=engine == 'serial')), 'steps were not done')
    except study.ForgetError as e: print('error:', e)
'''
CELLS = dict(
    forever="open('started', 'w').close()\nwhile True: sum(range(10**5))",
    broken="raise ValueError('the culprit, and\\nthe remedy')",
    killed="import os; os.kill(os.getpid(), 9)",
    after="open('after', 'w').close()",
)

@pytest.fixture
def project(tmp_path):
    "A project with tiny templates, its path as people have it; `start` runs the steps as a command of its own."
    home = tmp_path/'a clone ü'
    (home/'nbs/reports').mkdir(parents=True)
    (home/'settings.ini').touch()
    (tmp_path/'tmp').mkdir()
    for name, code in CELLS.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), home/f'nbs/reports/{name}.ipynb')
    (tmp_path/'steps.py').write_text(STEPS)
    class Project:
        out, started, after, tmp = tmp_path/ODD/'demo', home/'started', home/'after', tmp_path/'tmp'
        env = {**os.environ, 'OWF_HOME': str(home), 'OWF_OUTPUTS': str(tmp_path/ODD), 'TMPDIR': str(tmp_path/'tmp'), 'PYTHONPATH': str(ROOT)}
        cmd = staticmethod(lambda kind, engine: [sys.executable, str(tmp_path/'steps.py'), kind, engine, str(tmp_path/ODD/'demo')])
        def start(self, kind, engine):
            return subprocess.Popen(self.cmd(kind, engine), env=self.env, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True, start_new_session=True)
        def wait_for_start(self, p):
            end = time.monotonic() + 120
            while not self.started.exists() and time.monotonic() < end and p.poll() is None: time.sleep(.1)
            assert self.started.exists(), p.communicate()[0] if p.poll() is not None else 'never started'
        def left(self):
            found = []
            for p in psutil.process_iter():
                try:
                    if p.status() != psutil.STATUS_ZOMBIE and p.environ().get('OWF_OUTPUTS') == self.env['OWF_OUTPUTS']: found.append(p)
                except psutil.Error: pass
            return found
    return Project()

@pytest.mark.parametrize('engine, sig, code', [('parsl', signal.SIGINT, 130), ('serial', signal.SIGTERM, 143)])
def test_a_signal_to_the_process_group_ends_everything(project, engine, sig, code):
    "Pressed twice, as people do: nothing is left when the command returns, one line says so, the temporary folder is gone, and it can start again."
    p = project.start('forever', engine)
    project.wait_for_start(p)
    os.killpg(p.pid, sig)
    time.sleep(.1)
    try: os.killpg(p.pid, sig)
    except ProcessLookupError: pass
    said, _ = p.communicate(timeout=60)
    assert p.returncode == code and not project.left()
    assert 'Traceback' not in said and said.splitlines()[-1].startswith('Stopped ('), said
    assert not list(project.tmp.glob('owf-*'))
    assert not (ROOT/'outputs/demo').exists() and (project.out/'first/forever.log').exists()

def test_control_c_in_a_terminal(project):
    "The terminal itself sends the signal, to everything that stands in it."
    pid, fd = pty.fork()
    if not pid: os.execve(sys.executable, project.cmd('forever', 'parsl'), project.env)
    end = time.monotonic() + 120
    while not project.started.exists() and time.monotonic() < end: time.sleep(.1)
    os.write(fd, b'\x03')
    said = b''
    try:
        while piece := os.read(fd, 4096): said += piece
    except OSError: pass                                        # the other side is closed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130 and not project.left()
    assert b'Stopped (Ctrl-C)' in said and b'Traceback' not in said, said.decode()
    os.close(fd)

def test_a_closed_terminal_ends_everything(project):
    pid, fd = pty.fork()
    if not pid: os.execve(sys.executable, project.cmd('forever', 'parsl'), project.env)
    end = time.monotonic() + 120
    while not project.started.exists() and time.monotonic() < end: time.sleep(.1)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129 and not project.left()

def test_control_z_pauses_the_notebook_too(project):
    p = project.start('forever', 'serial')
    project.wait_for_start(p)
    kernel = next(x for x in project.left() if 'ipykernel_launcher' in ' '.join(x.cmdline()))
    def becomes(*states):
        end = time.monotonic() + 20
        while kernel.status() not in states and time.monotonic() < end: time.sleep(.1)
        return kernel.status() in states
    p.send_signal(signal.SIGTSTP)
    assert becomes(psutil.STATUS_STOPPED)
    p.send_signal(signal.SIGCONT)
    assert becomes(psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING)
    p.terminate()
    p.communicate(timeout=60)
    assert p.returncode == 143 and not project.left()

@pytest.mark.parametrize('engine', ['parsl', 'serial'])
def test_the_root_cause_stands_at_the_end(project, engine):
    p = project.start('broken', engine)
    said, _ = p.communicate(timeout=200)
    lines = said.rstrip().splitlines()
    assert lines[-1] == '3 steps were not done' and not project.after.exists(), said
    assert lines[-3:-1] == ['  ValueError: the culprit, and', 'the remedy'], said
    assert lines[-5].endswith('first/broken.ipynb') and lines[-4].endswith('first/broken.log') and '2 that need them were not run' in said
    assert 'Dependency' not in said and 'Traceback' not in said

def test_a_notebook_that_was_killed_is_said_to_have_been(project):
    said, _ = project.start('killed', 'serial').communicate(timeout=200)
    assert 'the memory was full' in said.splitlines()[-2], said

@pytest.mark.parametrize('engine, says', [('absent', 'no such interpreter'), ('asleep', 'started no worker within 3 s')])
def test_an_engine_that_does_not_start_is_an_error(project, engine, says):
    said, _ = project.start('after', engine).communicate(timeout=100)
    assert says in said and not project.after.exists() and not project.left(), said

def test_steps_run_where_paths_have_other_letters(project):
    "Clone and results with a space, an umlaut, a quote, a dollar and braces in their paths; temporary files in a folder with a space; ASCII locale, no home."
    project.env = {k: v for k, v in project.env.items() if k not in ('HOME', 'LANG')}
    (odd := project.tmp/'my tmp').mkdir()
    project.env |= dict(TMPDIR=str(odd), LC_ALL='C', PYTHONUTF8='0', PYTHONIOENCODING='ascii')
    said, _ = project.start('after', 'parsl').communicate(timeout=200)
    assert said.splitlines()[-1] == '0 steps were not done' and project.after.exists(), said
