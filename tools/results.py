"""Take results that pages of the site show from finished studies into nbs/results/, where they are checked in with a manifest of what made them.

`make results` after `make reproduce`: the headline and one picture of the README; a test compares the README with them.
`python tools/results.py --runs studies/methods.yaml` after that study: the means of its runs, from which nbs/answers/ draws its figures and sentences.
"""
import argparse, hashlib, json, sys
from pathlib import Path

import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ['name', 'measure', 'method', 'adaptation', 'corrected', 'value', 'low', 'high', 'floor', 'excess_low', 'excess_high', 'versus', 'less',
           'less_low', 'less_high', 'split', 'n', 'runs', 'scope', 'network']
WIDTH = 1400        # pixels of the picture

def sha(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()

def table_study(home): return pd.read_csv(home/'tables/results.csv', usecols=['study'], nrows=1).study[0]

def take(home, to):
    "Copy headline and picture of the study in `home` to the folder `to`."
    home, to = Path(home), Path(to)
    pictures = sorted(home.glob('figures/pictures-*.png'))
    if not (home/'tables/headline.csv').is_file() or not pictures:
        sys.exit(f'{home} has no finished report (tables/headline.csv, figures/pictures-*.png). Run `make reproduce` first.')
    to.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(home/'tables/headline.csv')[COLUMNS]
    table.round(6).to_csv(to/'headline.csv', index=False)
    image = Image.open(pictures[0]).convert('RGB')
    image = image.resize((WIDTH, round(image.height*WIDTH/image.width)), Image.LANCZOS)
    image.quantize(192, dither=Image.Dither.NONE).save(to/'pictures.png', optimize=True)
    made = {f.stem: json.loads(f.read_text(encoding='utf-8')) for f in (home/'base/base.json', home/'summary.json')}
    keep = {n: {k: m[k] for k in ('git', 'dirty', 'versions', 'python', 'device')} for n, m in made.items()}
    study = str(table_study(home))
    old = json.loads((to/'manifest.json').read_text(encoding='utf-8')) if (to/'manifest.json').is_file() else {}
    manifest = old | dict(study=study, picture=pictures[0].name, made=keep)
    manifest['sha256'] = old.get('sha256', {}) | {n: sha(to/n) for n in ('headline.csv', 'pictures.png')}
    (to/'manifest.json').write_text(json.dumps(manifest, indent=1, sort_keys=True) + '\n', encoding='utf-8')
    return to

def runs_of(study, home):
    "(a row per run with its means, of every method that has run on all subjects with all seeds; the step that made them)."
    from openworld_forget.study.fronts import cells
    from openworld_forget.study.sequences import chains
    if 'front' not in study.steps: return chains(study, home), 'sequence'
    t, whole = cells(study, home), len(study.concepts)*len(study.seeds)
    return t[t.groupby('method').method.transform('size') == whole], 'front'

def take_runs(file, home, to):
    "Write the means of a study's runs to the folder `to`, and into its manifest who made them."
    from openworld_forget.study.files import read_study
    study, to = read_study(file), Path(to)
    home = Path(home or ROOT/'outputs'/study.name)
    table, step = runs_of(study, home)
    if table.empty: sys.exit(f'{home}: no method has run on all subjects with all seeds. Finish the study.')
    table.round(6).to_csv(to/f'{study.name}.csv', index=False)
    made = [json.loads(f.read_text(encoding='utf-8')) for f in sorted(home.rglob(f'{step}.json'))]
    said = {json.dumps({k: m[k] for k in ('git', 'dirty', 'source', 'versions', 'python', 'device')}, sort_keys=True) for m in made}
    manifest = json.loads((to/'manifest.json').read_text(encoding='utf-8'))
    manifest.setdefault('runs', {})[study.name] = dict(study=file, runs=len(table), made=[json.loads(x) for x in sorted(said)])
    manifest['sha256'][f'{study.name}.csv'] = sha(to/f'{study.name}.csv')
    (to/'manifest.json').write_text(json.dumps(manifest, indent=1, sort_keys=True) + '\n', encoding='utf-8')
    return to/f'{study.name}.csv'

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('home', nargs='?', help='folder of the finished study; its own below outputs/ when left out')
    ap.add_argument('--runs', metavar='STUDY', help='take the means of the runs of this study instead')
    ap.add_argument('--to', default=str(ROOT/'nbs/results'), help='where the result goes')
    a = ap.parse_args(argv)
    print(take_runs(a.runs, a.home, a.to) if a.runs else take(a.home or ROOT/'outputs/reproduce', a.to))

if __name__ == '__main__': main()
