"""Commands that start at once: one process (`python tests/warm.py SOCKET`) imports what the package imports, and every command that a test runs is
a fork of it, with its own folder, environment, arguments, pipes and exit code. A fork has one thread, no world, no figure, nothing of its neighbours.

Not for tests of what happens before and beside the work: how a command starts, what signals do to it, what it imports, locales, a kill: these start
it for real."""
import builtins, importlib, json, os, select, signal, socket, subprocess, sys, tempfile, time, traceback, types
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# what the templates and the commands import; each names the others
MODULES = (*(f'openworld_forget.{m}' for m in (
    'study.main', 'study.figures', 'study.findings', 'study.step_semantic', 'study.step_appearance', 'study.step_fidelity', 'audit.command',
    'audit.validation', 'worlds.tiny', 'mini.data')), 'papermill.execute', 'nbconvert', 'torchmetrics.image.kid', 'duckdb', 'efficientnet_lite_pytorch')
# read by libraries while they are imported, or by Python when it starts: who wants others starts for real
AT_IMPORT = ('PYTHON', 'HF_', 'OMP_', 'OPENBLAS_', 'MKL_', 'LC_', 'LANG', 'TORCH', 'TRANSFORMERS_', 'DIFFUSERS_', 'LD_', 'JE_')
ONE_THREAD = {'OPENBLAS_NUM_THREADS': '1', 'JE_ARROW_MALLOC_CONF': 'background_thread:false'}      # as `study.warm` has them
SERVER = 'TESTS_SERVER'          # environment variable: its socket

# ---------------------------------------------------------------- the server
def load():
    "Import everything; the names of threads that a fork would lose."
    from openworld_forget.start import importing
    with importing():
        from openworld_forget.study.warm import FOR_ALL
        for m in (*MODULES, *FOR_ALL): importlib.import_module(m)
    from openworld_forget.source import modules, source_key
    source_key(*modules())                                          # and read what keys are made of
    return [(t/'comm').read_text().strip() for t in Path('/proc/self/task').iterdir() if int(t.name) != os.getpid()]

def serve(where):
    "Fork for every connection; imports wait for the first one. Ends with the process that started it."
    parent, s, loaded = os.getppid(), socket.socket(socket.AF_UNIX), False
    s.bind(where)
    s.listen(64)
    s.settimeout(2)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        try: connection, _ = s.accept()
        except TimeoutError: continue
        if not loaded:
            if threads := load(): sys.exit(f'a library started threads: {threads}')
            loaded = True
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            s.close()
            connection.settimeout(None)
            attend(connection)
        connection.close()

def attend(connection):
    "In a fork: fork once more for the job, wait for it or for the end of whoever asked, answer with the exit code."
    head, fds, *_ = socket.recv_fds(connection, 1, 3)
    with connection.makefile('rw', encoding='utf-8') as f:
        job = json.loads(f.readline())
        if not (pid := os.fork()): work(job, fds, connection.fileno())
        for fd in fds: os.close(fd)
        while True:
            over, status = os.waitpid(pid, os.WNOHANG)
            if over: break
            if select.select([connection], [], [], .05)[0]:         # it sends nothing more: it has gone
                try: os.killpg(pid, signal.SIGKILL)
                except OSError: pass
        print(os.waitstatus_to_exitcode(status), file=f, flush=True)
    os._exit(0)

def work(job, fds, connection):
    "In the fork of a fork: become the command."
    os.setsid()
    os.close(connection)
    for fd, to in zip(fds, (0, 1, 2)): os.dup2(fd, to)
    for fd in fds:
        if fd > 2: os.close(fd)
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP): signal.signal(s, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, (n, mode, errors) in enumerate((('stdin', 'r', None), ('stdout', 'w', None), ('stderr', 'w', 'backslashreplace'))):
        f = open(fd, mode, 1 if n == 'stderr' else -1, encoding='utf-8', errors=errors, closefd=False)
        setattr(sys, n, f)
        setattr(sys, f'__{n}__', f)
    os.environ.clear()
    os.environ.update(job['env'])
    os.chdir(job['cwd'])
    own = job['env'].get('PYTHONPATH', '').split(os.pathsep) if job.get('fresh') else []
    sys.path[:] = ['' if job.get('argv', [''])[1:2] == ['-c'] else job['cwd'], *filter(None, own), *sys.path[1:]]
    import matplotlib
    matplotlib.rcParams['backend'] = job['env'].get('MPLBACKEND') or 'Agg'
    from openworld_forget.study import engine, warm
    engine.nursed = nursed
    if 'nursery' in job:
        warm.nursery(*job['nursery'])
        os._exit(0)
    if 'papermill' in job['argv']: warm.lend(*warm.waiting_kernel())
    if job['fresh']:
        for m in [m for m in sys.modules if m.partition('.')[0] == 'openworld_forget']: del sys.modules[m]
    warm.leave(warm.become(job['argv']) if '-m' in job['argv'][:2] else script(job['argv']))

def script(argv):
    "`python -c text arguments`; the exit code."
    main = types.ModuleType('__main__')
    main.__builtins__ = builtins
    sys.modules['__main__'], sys.argv = main, ['-c', *argv[3:]]
    try: exec(compile(argv[2], '<string>', 'exec'), main.__dict__)
    except SystemExit as e: return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

@contextmanager
def nursed(modules, env, folder):
    "What `study.warm.nursed` does, its process a fork of the server."
    from openworld_forget.study.processes import environ
    where = f'{folder}/nursery'
    with open(os.devnull) as none, open(f'{folder}/nursery.log', 'w') as log:
        asked = ask(os.environ[SERVER], dict(nursery=[where, *modules], env={**os.environ, **env}, cwd=str(ROOT)), none, log, log)
    end = time.monotonic() + 60
    while not os.path.exists(where) and time.monotonic() < end: time.sleep(.01)
    try:
        with environ(OWF_NURSERY=where): yield
    finally: asked.close()

# ---------------------------------------------------------------- who asks
def ask(where, job, *files):
    "A connection on which the exit code will come; who closes it ends the job."
    s = socket.socket(socket.AF_UNIX)
    s.connect(where)
    socket.send_fds(s, [b'.'], [f.fileno() for f in files])
    s.sendall((json.dumps(job) + '\n').encode())
    return s

def run(argv, *, cwd=ROOT, env=None, timeout=900, text='', fresh=False):
    """Like `subprocess.run([python, '-m', module, ...], capture_output=True, text=True)` (or `-c`), its start apart. `fresh`: this package, and what else lies
    on `PYTHONPATH`, is imported by the command itself, wherever it is; the libraries are there."""
    env = dict(os.environ if env is None else env)
    argv = [str(a) for a in argv]
    assert argv[0] == sys.executable and argv[1] in ('-m', '-c'), f'{argv}: a module or a text'
    own = {'PYTHONPATH'} if fresh else set()
    other = {k for k in {*env, *os.environ} - own if k.startswith(AT_IMPORT) and env.get(k) != os.environ.get(k)}
    assert not other, f'{other} would be read too late'
    with tempfile.TemporaryFile('w+') as said, tempfile.TemporaryFile('w+') as wrong, tempfile.TemporaryFile('w+') as told:
        told.write(text)
        told.seek(0)
        with ask(os.environ[SERVER], dict(argv=argv, env=env, cwd=str(cwd), fresh=fresh), told, said, wrong) as s:
            s.settimeout(timeout)
            try: code = s.makefile().readline()
            except TimeoutError: raise subprocess.TimeoutExpired(argv, timeout) from None
        said.seek(0)
        wrong.seek(0)
        return subprocess.CompletedProcess(argv, int(code or -signal.SIGKILL), said.read(), wrong.read())

@contextmanager
def server():
    "The server, for as long as the tests run; it imports nothing until it is asked."
    with tempfile.TemporaryDirectory(prefix='owf-', dir='/tmp') as d:
        where = f'{d}/server'
        with open(f'{d}/log', 'w') as log:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
            p = subprocess.Popen([sys.executable, __file__, where], env={**os.environ, **ONE_THREAD, 'MPLBACKEND': 'Agg', 'PYTHONPATH': path},
                                 cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        while not os.path.exists(where) and p.poll() is None: time.sleep(.01)
        try: yield where
        finally:
            p.kill()
            p.wait()

if __name__ == '__main__': serve(sys.argv[1])
