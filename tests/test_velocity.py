"""The mini world in velocities, and two studies side by side: does a finding hold for another denoiser?"""
import json, re

import numpy as np, pandas as pd, pytest, torch
import yaml

from openworld_forget.core import ForgetError, content_key, noise, read_json, rng
from openworld_forget.mini import velocity as V
from openworld_forget.mini.denoiser import denoising_loss
from openworld_forget.mini.images import BENCHMARKS
from openworld_forget.study.architectures import checked_in, findings_table, scope_of, sides
from openworld_forget.study.files import read_study
from openworld_forget.study.plan import plan
from openworld_forget.study.records import Study, run_folder
from openworld_forget.study.results import template_code
from openworld_forget.study.step_front import units_of
from openworld_forget.training.fit import Recipe
from openworld_forget.worlds.load import load_world
from openworld_forget.worlds.world import WORLDS, spec_of

from conftest import ROOT

@pytest.fixture(scope='module')
def base(): return load_world('mini', 'cpu')
@pytest.fixture
def captions(monkeypatch):
    "Captions that say nothing: to write all hundred thousand takes longer than these trainings."
    monkeypatch.setattr(V, '_captions', lambda: torch.zeros(150_000, 20, dtype=torch.long))
@pytest.fixture(scope='module')
def student(base): return V.student_of(base)
@pytest.fixture(scope='module')
def batch(base):
    z, e = (noise(base.latent_shape, 0, k, range(6)) for k in 'ze')
    return z, base.tokens(['a drawing of a cat face', 'a drawing of a bus', '']*2), torch.tensor([0, 100, 300, 500, 800, 999]), e

class Exact(torch.nn.Module):
    "A denoiser of velocities that knows what another answers in noise."
    def __init__(self, teacher): super().__init__(); self.teacher = teacher; self.config = teacher.unet.config
    device = property(lambda self: self.teacher.device); dtype = property(lambda self: self.teacher.dtype)
    def forward(self, x, timestep, encoder_hidden_states):
        out = self.teacher.unet(x, timestep, encoder_hidden_states); a = self.teacher.scheduler.alphas_cumprod[timestep]
        out.sample = V.as_velocity(out.sample, x, a); return out

@torch.no_grad()
def test_the_exact_student_has_the_loss_of_its_teacher_and_none_against_it(base, student, batch):
    "A velocity is another name for the same answer: the weighted loss is the same number, and the noise read from it is the teacher's."
    z, ids, t, e = batch; exact = student.but(unet=Exact(base))
    own = denoising_loss(base.unet, base.text_encoder, base.scheduler.alphas_cumprod, z, ids, t, e)
    assert V.velocity_loss(exact, z, ids, t, e).item() == pytest.approx(own.item(), rel=1e-4)
    assert V.velocity_loss(exact, z, ids, t, e, base).item() == pytest.approx(0, abs=1e-9)
    c, z_t = base.text_encoder(ids)[0], base.add_noise(z, e, t)
    assert torch.allclose(exact.epsilon(exact.predict(z_t, t, c), z_t, t), base.predict(z_t, t, c), atol=1e-4)

def test_a_student_starts_from_its_teachers_weights_and_leaves_them(base, student):
    assert all(torch.equal(p, q) and p is not q and p.requires_grad and not q.requires_grad
               for p, q in zip(student.unet.parameters(), base.unet.parameters()))
    assert (student.prediction, base.prediction) == ('v_prediction', 'epsilon') and student.text_encoder is base.text_encoder

def test_one_batch_is_learned_from_either_target(base, batch):
    "Gradients reach the student alone; in a few steps on one batch the loss falls, whatever the target is."
    z, ids, t, e = batch; before = content_key(dict(base.unet.state_dict()))
    for teacher in (None, base):
        w = V.student_of(base); opt = torch.optim.Adam(w.unet.parameters(), 3e-4); losses = []
        for _ in range(6):
            opt.zero_grad(); loss = V.velocity_loss(w, z, ids, t, e, teacher); loss.backward(); opt.step(); losses.append(loss.item())
        assert losses[-1] < .8*losses[0], losses
    assert content_key(dict(base.unet.state_dict())) == before

def test_a_training_is_told_from_one_with_another_target(base, tmp_path, captions):
    "A checkpoint belongs to its recipe and its lead; the released recipe is long enough for both halves."
    items, pc = V.splits()['train'][:4], V.transform_of(base); r = Recipe(steps=2, lr=1e-3, batch=2)
    V.train_velocity(base, items, pc, r, 0, tmp_path/'c.safetensors', until=1)
    with pytest.raises(ForgetError, match='another recipe'): V.train_velocity(base, items, pc, r, 1, tmp_path/'c.safetensors')
    assert 0 < V.LEAD < V.VELOCITY_RECIPE.steps

def test_a_step_in_pieces_is_the_same_step(base, captions, monkeypatch):
    "Three images at once, or two and one: the same loss, and the same gradient to rounding."
    items, pc = V.splits()['train'][:4], V.transform_of(base); r = Recipe(steps=1, lr=1e-3, batch=3); logs = []
    for n in (3, 2): monkeypatch.setattr(V, 'PIECE', n); logs.append(V.train_velocity(base, items, pc, r)[1][0])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)

def test_main_goes_on_where_it_was_stopped_and_writes_the_folder_when_it_is_done(base, tmp_path, monkeypatch, capsys, captions):
    "The released command, on a tiny recipe: stopped twice, then whole; another process would find the same files."
    (tmp_path/'weights').mkdir(); (tmp_path/'weights/mini').symlink_to(ROOT/'weights/mini'); judged = []
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'outputs'))
    items = V.splits()['train'][:4]
    for k, v in dict(VELOCITY_RECIPE=Recipe(steps=3, lr=1e-3, batch=2, ema=.9), LEAD=1, splits=lambda: {'train': items}, root=lambda: tmp_path,
                     judge_released=lambda: judged.append(1)).items(): monkeypatch.setattr(V, k, v)
    V.main(until=1); assert '1 of 3 steps' in capsys.readouterr().out and not (tmp_path/'weights/mini-v').exists()
    V.main(); first = {p.name: p.read_bytes() for p in (tmp_path/'weights/mini-v/unet').iterdir()}
    V.main(); assert judged == [1, 1] and first == {p.name: p.read_bytes() for p in (tmp_path/'weights/mini-v/unet').iterdir()}
    w = load_world(spec_of('mini-v').but(source=str(tmp_path/'weights/mini-v')), 'cpu')
    assert w.prediction == 'v_prediction' and 'root' not in (tmp_path/'weights/mini-v/unet/config.json').read_text()
    assert sum(p.stat().st_size for p in (tmp_path/'weights/mini-v/unet').iterdir()) < 9e6

def test_mini_v_is_mini_but_for_its_name_and_weights():
    a, b = (WORLDS[n].model_dump() for n in ('mini', 'mini-v'))
    assert {k for k in a if a[k] != b[k]} == {'name', 'source'}

def test_released_weights_share_every_part_but_denoiser_and_schedule():
    "The same bytes, and a card that says what was measured."
    folder = ROOT/'weights/mini-v'
    for part in ('text_encoder', 'vae', 'tokenizer'):
        assert {f.name: f.read_bytes() for f in (folder/part).iterdir()} == {f.name: f.read_bytes() for f in (ROOT/'weights/mini'/part).iterdir()}
    assert load_world('mini-v', 'cpu').prediction == 'v_prediction'
    m = read_json(folder/'card.json'); assert V.card(m) == (folder/'README.md').read_text() and set(m['heldout']) == set(BENCHMARKS)

# ---- two studies side by side
ONE = Study.make(**yaml.safe_load((ROOT/'studies/velocity.yaml').read_text())).but(concepts=['cat-noto', 'dog-fluent'], beside='')
STRENGTH = {'db-25': .25, 'db-50': .5, 'db-75': .75, 'db-plain': 1.}
LEFT = {'db-dc-1': .5, 'db-dc-10': .3, 'lora-plain': .6, 'lora-dc-10': .2}

def made(study, home, left=LEFT, size=1., skip=()):
    "Runs whose drift is a parabola in the strength times `size`, and of which methods leave a part."
    for m in study.methods:
        for c in study.concepts:
            for seed in study.seeds:
                if (m, c, seed) in skip: continue
                r = rng(seed, 'made', study.name, c, m); s = STRENGTH.get(m, .9); drift = size*left.get(m, 1.)*s**2
                lost = np.zeros(200); lost[:max(0, round(80*drift + r.normal(0, 2)))] = 1; ones = np.ones(200)
                p = [f'p{i}' for i in range(10)]; noisy = lambda x: np.clip(x + r.normal(0, .01, 10), 0, 1)
                t = [units_of('right', range(200), ones - lost, ones, ones), units_of('lpips', p, noisy(.4*drift), 0., .05),
                     units_of('colour', p, noisy(.2*drift), 0., .02), units_of('fidelity', p, .4 + .3*s + r.normal(0, .002, 10), .4),
                     units_of('text', p, .3, .3)]
                f = run_folder(home, c, m, seed); f.mkdir(parents=True)
                pd.concat(t).to_csv(f/'units.csv', index=False); pd.DataFrame(dict(value=[0.])).to_parquet(f/'front.parquet')
    return home

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "mini, and a second world where correction of a LoRA leaves more than it had."
    d = tmp_path_factory.mktemp('pair'); first = ONE.but(name='first', world='mini', reports=['methods'])
    return first, made(first, d/'first'), ONE, made(ONE, d/'velocity', LEFT | {'lora-dc-10': .9}, .8)

def row(t, method, about, kind='drop'): return t[(t.method == method) & (t.about == about) & (t.kind == kind)]

def test_findings_hold_or_not_as_the_tables_were_made(pair):
    t = findings_table(*sides(*pair)); said = lambda *a: row(t, *a).both.unique().tolist()
    assert said('db-plain', 'loss') == said('lora-plain', 'loss') == said('db-dc-10', 'correction') == said('lora-plain', 'kind') == ['holds in both']
    assert said('db-dc-10', 'null') == ['holds in both'] and said('lora-dc-10', 'correction') == ['differs']
    a, b = row(t, 'db-plain', 'loss').itertuples(); assert (a.world, b.world, a.n, b.n) == ('mini', 'mini-v', 6, 6)
    assert abs(a.value - 40) < 2 and abs(b.value - 32) < 2 and a.low < 40 < a.high + 2 and abs(a.more - (b.value - a.value)) < 1e-9 and a.more_high < 0
    assert not any(t.method.isin(['db-25', 'db-50', 'db-75']))                               # the null's members are no findings

def test_a_study_of_noise_decides_nothing(tmp_path):
    quiet = dict.fromkeys(LEFT, 0.)
    studies = [ONE.but(name=n, world=w, methods=['db-25', 'db-plain', 'lora-plain']) for n, w in (('a', 'mini'), ('b', 'mini-v'))]
    homes = [made(s, tmp_path/s.name, quiet, 0.) for s in studies]
    t = findings_table(*sides(studies[0], homes[0], studies[1], homes[1]))
    assert (row(t, 'lora-plain', 'kind', 'lpips').both == 'not decided in either').all() and (t.verdict != 'holds').mean() > .8

@pytest.mark.parametrize('change,why', [
    (dict(world='mini'), 'of one world'), (dict(overrides=dict(per_class=2)), 'measure otherwise'), (dict(methods=['ti']), 'no method in common'),
    (dict(concepts=['rocket-fluent']), 'no subject in common'), (dict(seeds=[7]), 'no training seed in common')])
def test_studies_that_cannot_be_compared_are_one_error(pair, change, why):
    first, a, second, b = pair; other = second.but(**change)
    if 'overrides' in change: other = second.but(overrides=second.overrides | change['overrides'])
    with pytest.raises(ForgetError, match=why): sides(first, a, other, b)

def test_what_is_checked_in_stands_for_runs_that_are_not_there_and_half_a_method_for_none(pair, tmp_path):
    from openworld_forget.study.fronts import cells
    first, a, second, b = pair; known = cells(first, a)
    x, y = sides(first, tmp_path, second, b, (known, None)); assert x.grid.methods == first.methods and x.grid.values['drop'].shape == (8, 2, 3)
    z = sides(first, tmp_path, second, tmp_path, (known, cells(second, b))); assert findings_table(*z).equals(findings_table(x, y))
    some = made(first.but(methods=['db-plain', 'db-25']), tmp_path/'some', skip=[('db-25', 'cat-noto', 0)])
    x, _ = sides(first, some, second, b); assert x.grid.methods == ['db-plain']                          # half a method is none
    x, _ = sides(first, some, second, b, (known[known.method != 'lora-plain'], None)); assert set(x.grid.methods) == set(first.methods) - {'lora-plain'}
    left = made(second, tmp_path/'left', skip=[('lora-dc-10', 'dog-fluent', 2)]); assert 'left out: lora-dc-10.' in scope_of(*sides(first, a, second, left))

def test_the_study_beside_is_the_one_whose_results_are_checked_in():
    s = read_study('studies/velocity.yaml'); other = read_study(s.beside)
    assert set(checked_in(other, s.beside).method) <= set(other.methods) and checked_in(other, 'studies/mine.yaml') is None

def test_a_method_that_is_made_otherwise_is_left_out(pair):
    first, a, second, b = pair
    other = second.but(variants={**second.variants, 'db-dc-10': dict(of='db-dc-nopr', correction=7)})
    x, y = sides(first, a, other, b); assert x.grid.methods == y.grid.methods == [m for m in first.methods if m != 'db-dc-10']

def test_the_study_names_the_other_one_and_its_report_is_keyed_by_both(tmp_path):
    s = read_study('studies/velocity.yaml'); assert s.beside == 'studies/methods.yaml' and read_study(s.beside).spec.name == 'mini'
    both = read_study(s.beside); assert all(s.method(m) == both.method(m) for m in s.methods) and s.limits == both.limits
    key = lambda: {x.name: x.key for x in plan(s, tmp_path)}
    before = key(); f = run_folder(tmp_path/'methods', 'cat-noto', 'db-25', 0); f.mkdir(parents=True); (f/'units.csv').write_text('kind\n')
    after = key(); assert {k for k in before if before[k] != after[k]} == {'architectures'}
    fronts = lambda s: {x.key for x in plan(s, tmp_path) if x.name == 'front'}
    assert fronts(s.but(beside='', reports=['methods'])) == fronts(s)

@pytest.mark.parametrize('change,why', [
    (dict(beside=''), 'Write beside:'), (dict(reports=['methods']), 'no report of this study reads it'),
    (dict(beside='studies/velocity.yaml'), 'is this study itself'), (dict(beside='studies/sequence.yaml'), 'lacks the step front'),
    (dict(beside='studies/method.yaml'), 'Did you mean studies/methods.yaml')])
def test_what_is_wrong_with_beside_is_said_before_the_run(tmp_path, change, why):
    d = yaml.safe_load((ROOT/'studies/velocity.yaml').read_text()) | change
    (f := tmp_path/'s.yaml').write_text(yaml.safe_dump({k: v for k, v in d.items() if v != ''}))
    with pytest.raises(ForgetError, match=re.escape(why)): read_study(f)

def test_the_report_runs_on_two_studies(pair, monkeypatch):
    "Every cell of the template, in this process: what it writes is what the tables say."
    import matplotlib.pyplot as plt
    from openworld_forget.study import files
    first, _, second, home = pair
    monkeypatch.setattr(files, 'study_beside', lambda s: first)
    code = template_code('architectures'); said = dict(study=second.model_dump_json(), home=str(home))
    for k, v in said.items(): code = re.sub(rf"(?m)^{k} = .*$", lambda m, k=k, v=v: f'{k} = {v!r}', code)
    exec(compile(code, 'architectures', 'exec'), {}); plt.close('all')
    text = (home/'architectures.txt').read_text(); made_of = json.loads((home/'architectures.json').read_text())
    assert '`db-plain` loses recognition: accuracy drop (points) **holds in both** (mini ' in text and '**differs**' in text
    assert all((home/f).is_file() for f in made_of['files']) and (home/'figures/architectures.png').is_file()
    t = pd.read_csv(home/'tables/architectures.csv'); assert set(t.world) == {'mini', 'mini-v'} and len(t) == 2*(3*t.finding.nunique() - 2*2)
