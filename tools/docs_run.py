"""Run the notebooks for their pictures and tables. What a notebook gave is kept by content: a second build runs what changed, and nothing else."""
import json, os, re, sys

import nbformat

READ = ('weights', 'package-lock.json', 'studies')      # what notebooks read of the project besides each other's modules

def code_of(nb): return '\n'.join(re.sub(r'^\s*[%!].*', '', ''.join(c['source']), flags=re.M) for c in nb['cells'] if c['cell_type'] == 'code')

def page_key(path, home):
    "Content key of what a notebook's outputs are made from: its cells, the source that they reach, the weights, drawings and studies."
    from openworld_forget.core import content_key
    from openworld_forget.source import imports, module_of, source_key
    nb = json.loads(path.read_text(encoding='utf-8'))
    modules = {m for i in imports(code_of(nb)) if (m := module_of(i))}
    cells = [[c['cell_type'], ''.join(c['source'])] for c in nb['cells']]
    return content_key(path.name, cells, source_key(*sorted(modules)), [home/f for f in READ if (home/f).exists()])

def run(path):
    "Run a notebook in place, by nbdev's rules."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    flags, cwd = set(get_config().tst_flags.split()), os.getcwd()
    seen, nb = NBProcessor(path, process=True).nb, read_nb(path)
    def skipped(c): return flags & c.directives_.keys() or c.directives_.get('eval:', [''])[0].lower() == 'false'
    skip = {c.idx_ for c in seen.cells if c.cell_type == 'code' and skipped(c)}
    shell = CaptureShell(path)
    try:
        os.chdir(path.parent)
        shell.run_all(nb, exc_stop=True, preproc=lambda c: c.idx_ in skip)
    except Exception: sys.exit(f'{path.name} failed, so the site was not built.\n{shell.prettytb(fname=path.name)}')
    finally: os.chdir(cwd)
    write_nb(nb, path)
    without_warnings(path)

def without_warnings(path):
    "Drop what a notebook said on stderr: progress bars, and no result."
    nb = nbformat.read(path, 4)
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if not (o.output_type == 'stream' and o.name == 'stderr')]
    nbformat.write(nb, path)

def execute(nbs, home, cache, only=None):
    "Give the notebooks below `nbs` (of the project `home`) their outputs, from the cache or by running them; returns (run, reused)."
    from nbdev.doclinks import nbglob
    from openworld_forget.core import write_text
    files = [p for p in sorted(nbglob(nbs, as_path=True)) if p.parent.name != 'reports' and (only is None or p.relative_to(nbs).as_posix() in only)]
    ran, kept = [], {}
    for i, p in enumerate(files, 1):
        name = p.relative_to(nbs).as_posix()
        f = kept[name] = cache/f'{name[:-6].replace("/", "-")}-{page_key(p, home)}.ipynb'
        if f.exists():
            p.write_bytes(f.read_bytes())
            continue
        print(f'{i:2}/{len(files)} running {name}', flush=True)
        run(p)
        write_text(f, p.read_text(encoding='utf-8'))
        ran.append(name)
    if only is None:
        for f in set(cache.glob('*.ipynb')) - set(kept.values()): f.unlink()          # of notebooks as they were once
    print(f'{len(ran)} notebooks run, {len(files) - len(ran)} taken as they were')
    return ran, len(files) - len(ran)

# ------------------------------------------------------------------ results: what studies made of the templates
PLACES = ('{}/{}', '{}/base/{}', '{}/*/*/seed-*/{}')

def results(nbs, outputs):
    "Give the report templates the outputs of a study that ran them as they are now; `reproduce` first, then the others by name."
    studies = sorted((p.name for p in outputs.glob('*') if p.is_dir()), key=lambda n: (n != 'reproduce', n))
    for p in sorted((nbs/'reports').glob('*.ipynb')):
        template = nbformat.read(p, 4)
        want = [c.source for c in template.cells]
        for f in (f for s in studies for g in PLACES for f in sorted(outputs.glob(g.format(s, p.name)))):
            cells = [c for c in nbformat.read(f, 4).cells if 'injected-parameters' not in c.metadata.get('tags', [])]
            if [c.source for c in cells] != want: continue
            for mine, theirs in zip(template.cells, cells, strict=True):
                if mine.cell_type == 'code': mine.outputs = theirs.outputs
            nbformat.write(template, p)
            without_warnings(p)
            print(f'{p.stem}: as {f.relative_to(outputs).parent} made it')
            break
