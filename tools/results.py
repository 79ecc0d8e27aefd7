"""Take results that pages of the site show from finished studies into nbs/results/, where they are checked in with a manifest of what made them.

`make results` after `make reproduce`: the headline and one picture of the README; a test compares the README with them.
`python tools/results.py --runs studies/methods.yaml` after that study, or a part of it: the means of its runs, added to those that are there, from
which nbs/answers/ draws its figures and sentences.
`python tools/results.py --table outputs/benchmarks/costs.csv`: a table that such a page shows as it is.
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

def read_manifest(to): return json.loads((to/'manifest.json').read_text(encoding='utf-8'))

def write_manifest(to, manifest):
    (to/'manifest.json').write_text(json.dumps(manifest, indent=1, sort_keys=True) + '\n', encoding='utf-8')

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
    old = read_manifest(to) if (to/'manifest.json').is_file() else {}
    manifest = old | dict(study=study, picture=pictures[0].name, made=keep)
    manifest['sha256'] = old.get('sha256', {}) | {n: sha(to/n) for n in ('headline.csv', 'pictures.png')}
    write_manifest(to, manifest)
    return to

KEYS = dict(front=['method', 'subject', 'seed'], sequence=['method', 'seed', 'stage', 'subject', 'kind'])
NEAR, POINTS = 1e-3, 2.     # how far means of the same run may differ between two machines: a share of the larger; a drop: one test image of 64

def runs_of(study, home):
    "(the means of every run that is done, a row each; the step that made them)."
    from openworld_forget.study.fronts import cells
    from openworld_forget.study.sequences import chains
    return (cells(study, home), 'front') if 'front' in study.steps else (chains(study, home), 'sequence')

def differences(old, new, keys):
    "The largest difference of every column among the runs that two tables share: of drops in points, else as a share; empty: they share none."
    both = old.merge(new, on=keys, suffixes=('', ' again'))
    if both.empty: return {}
    out = {}
    for c in [c for c in old if c not in keys]:
        gap = (both[c] - both[f'{c} again']).abs()
        drop = both.kind == 'drop' if 'kind' in both else pd.Series(c.startswith('drop'), both.index)
        share = gap/both[[c, f'{c} again']].abs().max(axis=1).clip(lower=NEAR)
        bad = both[(drop & (gap > POINTS)) | (~drop & (share > NEAR))]
        if len(bad):
            r = bad.iloc[0]
            sys.exit(f'{c} of {dict(r[keys])} is {r[f"{c} again"]:.6g} here and {r[c]:.6g} in the result that is checked in: other code or another study '
                     'made it. Remove that result and its entry in the manifest, and take all of the runs anew.')
        out |= {f'{c} (points)': gap[drop].max()} if drop.any() else {}
        out |= {c: share[~drop].max()} if (~drop).any() else {}
    return {k: float(f'{v:.3g}') for k, v in out.items()}

def ordered(study, t, keys):
    "Rows in the order of the study's methods and subjects."
    at = {k: {n: i for i, n in enumerate(names)} for k, names in dict(method=study.methods, subject=['', *study.concepts]).items()}
    return t.sort_values(keys, key=lambda x: x.map(at[x.name]) if x.name in at else x, kind='stable').reset_index(drop=True)

def take_runs(file, home, to):
    """Write the means of a study's runs to the folder `to`, and into its manifest who made them.

    Runs of the same study that are there stay, those of other machines and days are added: a study of many hours is run in parts. At least one
    run has to be in both, and to say the same."""
    from openworld_forget.study.files import read_study
    study, to = read_study(file), Path(to)
    home, path = Path(home or ROOT/'outputs'/study.name), to/f'{study.name}.csv'
    table, step = runs_of(study, home)
    table, keys = table.fillna({'subject': ''}).round(6), KEYS[step]
    manifest = read_manifest(to)
    said = manifest.setdefault('runs', {}).setdefault(study.name, dict(made=[], again=[]))
    if path.is_file():
        old = pd.read_csv(path).fillna({'subject': ''})
        gaps = differences(old, table, keys)
        if not gaps: sys.exit(f'{path} and {home} have no run in common. Run one that is there again: it shows that both were made by the same code.')
        both = old[keys].merge(table[keys], on=keys)
        new = table.merge(both.assign(both=1), on=keys, how='left')
        table = pd.concat([old, new[new.both.isna()].drop(columns='both')], ignore_index=True)
        if new.both.isna().any(): said['again'] = [*said.get('again', []), dict(rows=len(both), largest_difference=gaps)]
    ordered(study, table, keys).to_csv(path, index=False)
    made = [json.loads(f.read_text(encoding='utf-8')) for f in sorted(home.rglob(f'{step}.json'))]
    makers = {json.dumps({k: m[k] for k in ('git', 'dirty', 'source', 'versions', 'python', 'device')}, sort_keys=True) for m in made}
    said['made'] = [json.loads(x) for x in sorted(makers | {json.dumps(m, sort_keys=True) for m in said['made']})]
    said |= dict(study=file, runs=len(table))
    manifest['sha256'][f'{study.name}.csv'] = sha(path)
    write_manifest(to, manifest)
    return path

def take_table(file, to):
    "Copy a finished table (`outputs/benchmarks/costs.csv`, say) to the folder `to`; the manifest says what was installed, and which source, when it was taken."
    from openworld_forget.source import manifest as made
    file, to = Path(file), Path(to)
    if not file.is_file(): sys.exit(f'{file} is not there. Make it first: `make benchmark`, or the study whose table it is.')
    pd.read_csv(file).round(6).to_csv(to/file.name, index=False)
    manifest = read_manifest(to)
    manifest.setdefault('tables', {})[file.name] = {k: v for k, v in made().items() if k in ('git', 'dirty', 'versions', 'python', 'device', 'time')}
    manifest['sha256'][file.name] = sha(to/file.name)
    write_manifest(to, manifest)
    return to/file.name

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('home', nargs='?', help='folder of the finished study; its own below outputs/ when left out')
    ap.add_argument('--runs', metavar='STUDY', help='take the means of the runs of this study instead')
    ap.add_argument('--table', metavar='FILE', help='take this table as it is instead')
    ap.add_argument('--to', default=str(ROOT/'nbs/results'), help='where the result goes')
    a = ap.parse_args(argv)
    print(take_table(a.table, a.to) if a.table else take_runs(a.runs, a.home, a.to) if a.runs else take(a.home or ROOT/'outputs/reproduce', a.to))

if __name__ == '__main__': main()
