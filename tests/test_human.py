"""People are asked: the page in a browser, what is read of it, and raters whose taste is known."""
import json, re

import numpy as np
import pytest
import torch

from browser import CHROMIUM, Browser, Gone
from openworld_forget.audit.command import main
from openworld_forget.core import ForgetError, generator, read_json, save_tensors, write_json
from openworld_forget.study.human import BASE, Design, Scene, design, finished, human_page, order, picture_uri, randoms, write_human
from openworld_forget.study.human_report import (
    NOBODY, Answers, alpha, human_table, known_design, left_out, read_all, read_answers, said, simulated, strengths, votes, which_picture,
)

STUDY = 'studies/smoke.yaml'
LIKED = {'usual': {'base': 0., 'db': -1.2, 'db-dc': -.4}, 'changed': {'db': .9, 'db-dc': 0.}}

def blot(color, seed, size=64):
    "A disc on a light ground."
    at = torch.rand(2, generator=generator(seed, 'blot'))*size*.4 + size*.3
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    inside = (y - at[0])**2 + (x - at[1])**2 < (size/4)**2
    return torch.where(inside, torch.tensor(color).view(3, 1, 1), torch.tensor(230)).to(torch.uint8)

def drawn(home, red=200):
    "The pictures of a finished study, by hand: db turns blue, db-dc a little."
    run = finished(STUDY)
    for s in run.prompt_sets:
        n = len(run.asked(s)[0])
        some = lambda color, k: torch.stack([blot(color, 1000*k + i) for i in range(n)])
        save_tensors(run.base_folder/f'images-{s}.safetensors', {'images': some((red, 40, 40), 0), 'floor': some((red, 40, 40), 1)})
        for m, color in (('db', (40, 40, 200)), ('db-dc', (180, 60, 90))):
            for f in run.study.folders(run.home)[m]: save_tensors(f/f'images-{s}.safetensors', {'images': some(color, 0)})

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A finished study and its page."
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    drawn(tmp_path)
    write_human(STUDY, count=6)
    return tmp_path/'smoke'

@pytest.fixture
def plan(home): return Design.make(**read_json(home/'human.json'))

def answered(d, folder, names, **kw):
    "Files of made-up raters."
    files = [folder/f'{n}.json' for n in names]
    for n, f in zip(names, files): write_json(f, simulated(d, n, LIKED, **kw))
    return files

# ---------------------------------------------------------------- the page
def test_the_page_is_one_file_that_asks_no_network_and_shows_no_method(home, plan):
    html = (home/'human.html').read_text()
    seen = re.sub(r'<script.*?</script>|<style.*?</style>|<[^>]+>', '', html, flags=re.S)
    assert not re.search(r'\b(db|db-dc|floor|customi[sz]ed|corrected|base)\b', seen)
    assert 'no person had answered it' in seen and 'nothing is sent' in seen.replace('\n', ' ')
    assert not re.search(r'https?:|src="(?!data:)|@import|url\(', html) and "default-src 'none'" in html
    assert {t.a.of for t in plan.trials} | {t.b.of for t in plan.trials} == {'base', 'db', 'db-dc', 'floor', '(scrambled)'}

def test_the_same_study_gives_the_same_page(home):
    before = (home/'human.html').read_bytes()
    write_human(STUDY, count=6)
    assert (home/'human.html').read_bytes() == before

def test_every_prompt_comes_once_before_one_comes_twice(plan):
    main = [t.prompt for t in plan.of('main') if t.block == 'changed']
    assert len(set(main)) == len(main) == 6

def test_large_pictures_are_scaled_down():
    import base64, io
    from PIL import Image
    uri = picture_uri(torch.zeros(3, 300, 600, dtype=torch.uint8), 256)
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).size == (256, 128)

def test_pairs_of_one_picture_are_not_asked():
    x = blot((200, 40, 40), 1)
    found = [Scene(f'p{i}', 'r', blot((200, 40, 40), i), [x, x], {'ti': blot((200, 40, 40), i), 'db': blot((40, 40, 200), i)}) for i in range(4)]
    d, _ = design('s', found, ['ti', 'db'], 4)
    assert {(t.a.of, t.b.of) for t in d.of('main') if t.block == 'usual'} == {('base', 'db'), ('ti', 'db')}
    with pytest.raises(ForgetError, match='pixel by pixel'): design('s', found, ['ti'], 4)

def test_a_study_without_pictures_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    assert main(['human', STUDY]) == 2 and f'owf run {STUDY}' in capsys.readouterr().err
    assert main(['human-report', STUDY]) == 2 and f'owf human {STUDY}' in capsys.readouterr().err
    (other := tmp_path/'front.yaml').write_text('name: front\nconcepts: [cat-noto]\nsteps: [front]\nreports: [methods]\n')
    assert main(['human', str(other)]) == 2 and 'takes no step `appearance`' in capsys.readouterr().err
    drawn(tmp_path)
    assert main(['human', STUDY, '--methods', 'dbb']) == 2 and "'db'" in capsys.readouterr().err

# ---------------------------------------------------------------- in a browser
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium on this machine')
def test_a_rater_answers_with_keys_clicks_and_after_a_reload(home, plan, tmp_path, capsys):
    "From the first screen to the saved file, which the report reads as it is."
    b = Browser(tmp_path/'browser', (home/'human.html').as_uri(), 400, 800)
    try:
        for rater in ('anna', 'Łukasz 2', '李'):         # one order in the browser and in Python
            theirs = b.run(f'order({json.dumps(rater)}).map(s => [s.trial, s.turn, s.swap])')
            assert theirs == [list(s) for s in order(plan, rater)]
        assert b.run('(r => [r(), r(), r()])(random("x|ü"))') == [next(r) for r in [randoms('x|ü')] for _ in range(3)]
        b.run('document.getElementById("rater").value = "Łukasz 2"')
        b.click('#start'); b.click('#go')
        def choose(how):
            b.until(lambda: b.run('shown > 0'))
            k = b.run('S.choices.length')
            how()
            b.until(lambda: b.run('S.choices.length') == k + 1)
            if b.run('!!document.querySelector("#told button")'): b.click('#told button')
        keys = {'left': lambda: b.press('1'), 'right': lambda: b.press('2')}
        def side(s): return 'left' if plan.trials[[t.id for t in plan.trials].index(s.trial)].answer != ('a' if s.swap else 'b') else 'right'
        todo = order(plan, 'Łukasz 2')
        b.until(lambda: b.run('shown > 0'))
        b.press('3')                                    # no choice
        b('Input.dispatchKeyEvent', type='keyDown', key='1', text='1', autoRepeat=True)         # nor a key that is held down
        assert b.run('S.choices.length') == 0
        for s in todo[:6]: choose(keys[side(s)])
        assert b.run('document.documentElement.scrollWidth') == 400         # nothing is wider than a phone
        with pytest.raises(Gone):                       # a page that loads anew while it is asked (CI met it in `reload`)
            b.run('(setTimeout(() => location.reload(), 50), new Promise(r => setTimeout(r, 9000)))')
        b.reload()
        assert b.run('document.getElementById("resume").textContent') == f'Go on as Łukasz 2 (6 of {len(todo)} done)'
        b.click('#resume'); b.click('#go')
        for k, s in enumerate(todo[6:]):
            if b.run('!document.getElementById("between").hidden'): b.click('#go')
            choose(keys[side(s)] if k % 3 else lambda s=s: b.click(f'#{side(s)}'))
            if k + 6 == len(todo)//2:
                b.until(lambda: b.run('shown > 0'))
                b.click('#pause')
                half = b.until(lambda: list(b.downloads.glob('*.json')))[0].rename(tmp_path/'half.json')
            b.until(lambda: b.run('shown > 0 || document.getElementById("trial").hidden'))
        assert b.run('!document.getElementById("done").hidden')
        b.click('#save')
        whole = b.until(lambda: list(b.downloads.glob('*.json')))[0]
        assert b.said == [] and [u for u in b.asked if not u.startswith(('data:', 'file:', 'blob:'))] == []
        b.click('#another')                             # asks, forgets, begins anew
        b.until(lambda: b.run('document.readyState === "complete" && !document.getElementById("intro").hidden'))
        assert 'deleted' in b.said[0] and b.run('document.getElementById("kept").hidden')
        def load(text):
            b.run(f'(() => {{ const f = document.getElementById("file"), t = new DataTransfer(); t.items.add(new File([{json.dumps(text)}], "a.json"));'
                  ' f.files = t.files; f.onchange({target: f}) })()')
        load(json.dumps({**json.loads(whole.read_text()), 'key': '0'}))
        b.until(lambda: 'another page' in b.run('document.getElementById("wrong").textContent'))
        load(half.read_text())
        b.until(lambda: b.run('!document.getElementById("between").hidden'))
        assert b.run('S.choices.length') == len(todo)//2 + 1
    finally: b.close()
    a, part = read_answers(whole, plan), read_answers(half, plan)
    assert a.rater == 'Łukasz 2' and a.complete and not a.simulated and len(a.choices) == len(todo) and not part.complete
    assert [c.chosen for c in a.choices] == [side(s) for s in todo] and part.choices == a.choices[:len(part.choices)]
    assert all(c.ms >= 0 for c in a.choices)
    assert left_out(votes(plan, [a]), [a]) == {'Łukasz 2': 'fast'}          # no person is as quick
    slow = a.but(choices=[c.but(ms=900) for c in a.choices])
    v = votes(plan, [slow])
    right = [t.answer == 'b' for t in v.trials if t.kind == 'check']
    assert v.first[0, [t.kind == 'check' for t in v.trials]].tolist() == right

# ---------------------------------------------------------------- what is read
@pytest.mark.parametrize('wrong, says', {
    'key': 'another page', 'cut': 'not valid JSON', 'kind': 'no file of answers', 'field': 'parameter of Answers', 'order': 'not those that the page asked',
    'side': 'not those that the page asked', 'more': 'not those that the page asked', 'time': 'choices.0.ms', 'rater': 'not those that the page asked',
    'list': 'no file of answers', 'unfinished': 'not those that the page asked', 'binary': 'not valid JSON',
}.items())
def test_a_wrong_file_is_one_error_that_names_it(plan, tmp_path, wrong, says):
    a = simulated(plan, 'anna', LIKED)
    first, second, *rest = a['choices']
    made = {
        'key': {**a, 'key': 'x'}, 'kind': {**a, 'kind': 'answers'}, 'field': {**a, 'age': 3}, 'order': {**a, 'choices': [second, first, *rest]},
        'side': {**a, 'choices': [{**first, 'left': first['right'], 'right': first['left']}, second, *rest]}, 'more': {**a, 'choices': [first, *a['choices']]},
        'time': {**a, 'choices': [{**first, 'ms': True}, second, *rest]}, 'rater': {**a, 'rater': 'bert'}, 'list': [a],
        'unfinished': {**a, 'choices': rest[:0]},
    }
    text = json.dumps(a)[:-9].encode() if wrong == 'cut' else b'\xff\xfe\0' if wrong == 'binary' else json.dumps(made[wrong]).encode()
    (f := tmp_path/'a.json').write_bytes(text)
    with pytest.raises(ForgetError, match=says) as e: read_answers(f, plan)
    assert str(f) in str(e.value)

def test_a_rater_counts_once_and_programs_are_not_people(plan, tmp_path):
    a, b = answered(plan, tmp_path, ['a', 'b'])
    with pytest.raises(ForgetError, match='counts once'): read_all([a, b, a], plan)
    write_json(b, {**read_json(b), 'simulated': False})
    with pytest.raises(ForgetError, match='never counted together'): read_all([a, b], plan)

def test_answers_to_pictures_that_were_made_anew_are_refused(home):
    known_design(finished(STUDY), STUDY)
    drawn(home.parent, red=190)
    with pytest.raises(ForgetError, match='run anew'): known_design(finished(STUDY), STUDY)

# ---------------------------------------------------------------- what is said
def test_without_answers_the_report_says_that_no_person_has_answered(home, capsys):
    assert main(['human-report', STUDY]) == 0
    assert NOBODY in capsys.readouterr().out and NOBODY in (home/'human-report.html').read_text() and not (home/'tables').exists()

def test_made_up_raters_are_called_so_wherever_they_are_counted(home, plan, tmp_path, capsys):
    import pandas as pd
    files = answered(plan, tmp_path, [f'r{i}' for i in range(7)]) + answered(plan, tmp_path, ['asleep'], lapse=1., seed=3)
    assert main(['human-report', STUDY, *map(str, files)]) == 0
    told, page = capsys.readouterr().out, (home/'human-report.html').read_text()
    assert 'simulated raters, made up by a program' in told and NOBODY in told and 'Left out by rule: asleep' in told and NOBODY in page
    t = pd.read_csv(home/'tables/human.csv')
    assert t.simulated.all() and set(t.raters) == {7} and (home/'figures/human.png').is_file()
    assert main(['human-report', STUDY]) == 0 and not (home/'tables/human.csv').exists()        # numbers of nobody do not stay
    score = t[(t.what == '2AFC') & (t.question == 'changed')].set_index('item')
    p = t[(t.what == 'share') & (t.question == 'changed')].value.iloc[0]
    assert score.value['colour names'] == pytest.approx(p)              # blue is farther from red than rose: it says db, always
    assert (score.value <= score.best + 1e-9).all() and (score['items'] == 6).all()

@pytest.mark.parametrize('count, whom', {1: 'there is nobody to agree with', 4: 'these raters alone', 5: 'raters like these'}.items())
def test_a_few_raters_speak_for_themselves_alone(long, count, whom):
    some = many(long, count, 0)
    assert whom in ' '.join(said(long, human_table(long, votes(long, some)), some, {}))

# ---------------------------------------------------------------- raters whose taste is known
def many(d, count, seed, **kw):
    "Made-up raters, in one step."
    return [Answers.make(**simulated(d, f'r{i}', LIKED, seed=seed, **kw)) for i in range(count)]

@pytest.fixture(scope='module')
def long():
    "A design of 16 scenes without pictures worth a look."
    tiny = lambda k: torch.full((3, 16, 16), k, dtype=torch.uint8) + torch.arange(16, dtype=torch.uint8)
    found = [Scene(f'p{i}', 'r', tiny(4*i), [tiny(4*i + 1), tiny(4*i + 2)], {'db': tiny(100 + i), 'db-dc': tiny(150 + i)}) for i in range(18)]
    return design('s', found, ['db', 'db-dc'], 16)[0]

def test_known_strengths_and_the_side_are_found_within_their_intervals(long):
    held = []
    for k in range(16):
        v = votes(long, many(long, 6, k, bias=.4)).where('usual', 'main')
        t = strengths(v, [BASE, 'db', 'db-dc'], draws=150, seed=k).set_index('world')
        held += [t.low[w] < true < t.high[w] for w, true in (('db', -1.2), ('db-dc', -.4), ('left', .4))]
    assert .85 <= np.mean(held) <= 1

def test_lapses_pull_strengths_toward_zero(long):
    value = lambda lapse: strengths(votes(long, many(long, 20, 1, lapse=lapse)).where('usual', 'main'), [BASE, 'db', 'db-dc'], draws=20).value[0]
    assert value(0.) < value(.5) < 0

def test_alpha_is_high_where_raters_follow_the_pictures_and_low_where_they_do_not(long):
    a = [alpha(which_picture(votes(long, many(long, 8, 2, spread=s, lapse=lapse)).where('usual', 'main'))) for s, lapse in ((12., 0.), (0., 1.))]
    assert a[0] > .6 and abs(a[1]) < .1

def test_page_and_raters_are_the_same_without_any_state(long):
    assert simulated(long, 'a', LIKED) == simulated(long, 'a', LIKED) != simulated(long, 'a', LIKED, seed=1)
    assert human_page(long, {}) == human_page(long, {}) and order(long, 'a') == order(long, 'a') != order(long, 'b')
