"""Take the result that the README shows from a finished study: its headline and one picture, into nbs/results/.

`make results` after `make reproduce`. What is taken is checked in, with a manifest of what made it; a test compares the README with it.
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
    manifest = dict(study=study, picture=pictures[0].name, made=keep, sha256={n: sha(to/n) for n in ('headline.csv', 'pictures.png')})
    (to/'manifest.json').write_text(json.dumps(manifest, indent=1, sort_keys=True) + '\n', encoding='utf-8')
    return to

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('home', nargs='?', default=str(ROOT/'outputs/reproduce'), help='folder of the finished study')
    ap.add_argument('--to', default=str(ROOT/'nbs/results'), help='where the result goes')
    a = ap.parse_args(argv)
    print(take(a.home, a.to))

if __name__ == '__main__': main()
