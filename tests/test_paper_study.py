"""The paper's study file, its world swapped for tiny ones of random weights in the layouts of SD 1.5, SD 2.1 (velocity) and SDXL, on all seven benchmarks in
their official layouts: planned, run and reported at the smallest size."""
import sys

import pandas as pd, pytest, torch, yaml
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

import archives, warm
from conftest import ROOT
from openworld_forget.study.results import collect
from openworld_forget.study.run import Run
from openworld_forget.study.tables import PAPER_BENCHMARKS, PAPER_WORST, beside_the_paper, same_seed, study_tables
from openworld_forget.worlds.tiny import save_world, tiny_sd2_world, tiny_world, tiny_xl_world

LAYOUTS = {'sd15': (tiny_world, 'db-dc'), 'sd21': (tiny_sd2_world, 'cd-dc'), 'sdxl': (tiny_xl_world, 'db-dc')}
MEASURES = {'accuracy drop, test (points)', 'colour drift, mean', 'KID', 'gain over the base', 'text alignment (CLIP-T)'}

def judges(world, folder):
    "A CLIP and a DINO of random weights, as transformers saves them."
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    look = dict(small, image_size=32, patch_size=8)
    words = dict(small, vocab_size=len(world.tokenizer), max_position_embeddings=77,
                 eos_token_id=world.tokenizer.eos_token_id, pad_token_id=world.tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=words, vision_config=look, projection_dim=16)).save_pretrained(folder/'clip')
        ViTModel(ViTConfig(**look), add_pooling_layer=False).save_pretrained(folder/'dino')
    world.tokenizer.save_pretrained(folder/'clip')

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Seven tiny archives, and one subject."
    d = tmp_path_factory.mktemp('data')
    archives.make_all(d, per_class=2, classes=3)
    (d/'subjects/can').mkdir(parents=True)
    for i in range(3): Image.effect_noise((70, 80), 20 + 20*i).save(d/f'subjects/can/{i}.png')
    (d/'subjects/can/class.txt').write_text('can')
    return d

@pytest.mark.parametrize('like', LAYOUTS)
def test_the_papers_study_runs_on_every_layout(like, data, tmp_path, monkeypatch):
    make, method = LAYOUTS[like]; w = make()
    save_world(w, tmp_path/'model'); judges(w, tmp_path)
    study = yaml.safe_load((ROOT/'studies/paper-sd15.yaml').read_text())
    assert set(study['methods']) >= set(PAPER_WORST) and len(study['concepts']) == 10 and study['reports'] == ['summary', 'paper']
    whole = like == 'sd15'                  # a part of a study ends before its reports; what they read is read below
    study |= dict(concepts=['can'], methods=[method], budget='smoke', overrides={'benchmarks': 7}, compute={}, world=dict(
        name='tiny', like=like, source=f'{tmp_path}/model', clip=f'{tmp_path}/clip', clip_revision=None, features=f'{tmp_path}/dino', token='x'))
    (tmp_path/'s.yaml').write_text(yaml.safe_dump(study))
    for k, v in dict(OWF_OUTPUTS=tmp_path/'out', OWF_DATA=data, OWF_FIGURES='pdf').items(): monkeypatch.setenv(k, str(v))
    def run(*more):
        cmd = [sys.executable, '-m', 'openworld_forget.study', str(tmp_path/'s.yaml'), *more]
        return warm.run(cmd)
    if whole:
        plan = run('--dry-run', '--rate', '100'); assert plan.returncode == 0, plan.stderr[-2000:]
        assert '1 runs: 1 subjects, 1 methods' in plan.stdout and '21 test images of 7 benchmarks' in plan.stdout and 'a second.' in plan.stdout
    r = run('--serial', *([] if whole else ['--seeds', '0'])); assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    home = tmp_path/'out/paper-sd15'
    t = beside_the_paper(collect(home), 'test')
    if whole: pd.testing.assert_frame_equal(pd.read_csv(home/'tables/beside-the-paper.csv'), t.assign(split='test'))
    t = t.set_index('benchmark').loc[PAPER_BENCHMARKS].reset_index()
    assert set(t.method) == {method} and (t.n == 3).all() and t.lost.between(-100, 100).all() and len(t) == 7
    assert t.paper_worst.tolist() == PAPER_WORST[method] and (home/'paper.html').is_file() == whole
    left = Run(str(tmp_path/'s.yaml'), str(home))
    head = study_tables(left).head.set_index(['measure', 'method'])
    assert MEASURES <= set(head.index.get_level_values(0)) and head.loc[('KID', method), 'network'].startswith('dino')
    if whole: assert (home/'figures/drift-and-fidelity.pdf').stat().st_size > 2000
    if whole: assert pd.read_csv(home/'tables/headline.csv').measure.tolist() == head.index.get_level_values(0).tolist()
    images = same_seed(left, 'can').images       # of the base and, from its adapter, of the method
    assert len(images) % 2 == 0 and not torch.equal(*images.chunk(2))
    drawn = {p.with_suffix('') for p in home.rglob('figures/*.png')}
    assert len(drawn) > 20 and drawn == {p.with_suffix('') for p in home.rglob('figures/*.pdf')}
    lists = sorted(p.name for p in home.rglob('*.csv') if p.name.startswith('images-') or p.name.startswith('subset-'))
    assert len(lists) >= 7, lists
