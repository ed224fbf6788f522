"""The page in a real browser, against a real server in a process of its own."""

from __future__ import annotations

import json
import urllib.parse

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

# Where one of these waits for the other, this is how long it may take on a busy machine.
PATIENCE = 60


@pytest.fixture(scope='module')
def log(tmp_path_factory):
  return tmp_path_factory.mktemp('log') / 'audit.jsonl'


@pytest.fixture(scope='module')
def address(start_server, people, log):
  return start_server(f'--index={people.index}', f'--audit_log={log}')


class Page:
  """The page, and what a person does with it.

  Attributes:
    driver: of the browser.
    address: of the server.
  """

  def __init__(self, driver, address):
    self.driver, self.address = driver, address

  def open(self, fragment=''):
    self.driver.get('about:blank')  # an address that differs in its fragment only would not load
    self.driver.get(self.address + fragment)
    return self.wait()

  def wait(self):
    from selenium.webdriver.support.ui import WebDriverWait

    script = (
      'return document.body.dataset.ready === "true"'
      ' && document.getElementById("results").getAttribute("aria-busy") === "false"'
    )
    WebDriverWait(self.driver, PATIENCE).until(lambda driver: driver.execute_script(script))
    return self

  def until(self, condition):
    from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    def met(_):
      # The page may draw an element anew between finding and reading it; then it is looked at
      # again. Chromium has two names for that.
      try:
        return condition()
      except StaleElementReferenceException:
        return False
      except WebDriverException as error:
        if 'does not belong to the document' not in str(error):
          raise
        return False

    return WebDriverWait(self.driver, PATIENCE).until(met)

  def all(self, selector):
    return self.driver.find_elements('css selector', selector)

  def one(self, selector):
    return self.driver.find_element('css selector', selector)

  def text(self, selector):
    return self.one(selector).text

  def ids(self):
    return [found.get_attribute('title') for found in self.all('.hit .id')]

  def fragment(self):
    return urllib.parse.unquote_plus(urllib.parse.urlsplit(self.driver.current_url).fragment)

  def pick(self, name, value):
    self.driver.execute_script(
      'document.querySelector(`input[name="a:${arguments[0]}"][value="${arguments[1]}"]`).click()',
      name,
      value,
    )

  def search(self):
    self.one('#go').click()
    return self.wait()

  def keys(self, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
      ActionChains(self.driver).send_keys(key).perform()

  def active(self):
    return self.driver.switch_to.active_element


@pytest.fixture
def page(chromium, address):
  found = Page(chromium, address)
  yield found
  found.driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
  bad = [
    entry
    for entry in chromium.get_log('browser')
    # An error that the page was told by its server is for the page to show.
    if entry['level'] == 'SEVERE' and '/api/v1/' not in entry['message']
  ]
  assert not bad


def test_an_empty_page_says_what_to_do(page):
  page.open()
  assert 'Whom are you looking for?' in page.text('#empty')
  assert '24 crops can be searched' in page.text('#empty')
  assert not page.all('.hit')
  page.one('#empty button').click()
  page.until(lambda: page.all('.hit .id'))
  assert page.one('#words').get_property('value') == 'woman, red top, hat'


def test_pickers_come_from_the_schema_and_have_three_states(page):
  page.open()
  assert [legend.text for legend in page.all('.pick legend')] == ['gender', 'hat', 'upper color']
  values = [i.get_property('value') for i in page.all('[name="a:upper_color"]')]
  assert values == ['', 'red', 'green', 'blue', 'none']
  asked = []
  for value in ('yes', 'no', ''):
    page.pick('hat', value)
    page.pick('gender', 'male')
    page.search()
    asked.append([chip.text for chip in page.all('#said li')])
  assert asked == [['gender: male', 'hat: yes'], ['gender: male', 'hat: no'], ['gender: male']]


def test_a_value_can_be_excluded(page):
  page.open()
  negate = page.one('[data-name=upper_color] .negate input')
  assert not negate.is_enabled()
  page.pick('upper_color', 'red')
  assert negate.is_enabled()
  negate.click()
  page.search()
  assert [chip.text for chip in page.all('#said li')] == ['upper color: not red']
  page.pick('upper_color', 'none')
  assert not negate.is_enabled()
  assert not negate.is_selected()


def test_words_are_searched_for_and_results_say_why(page):
  page.open()
  page.one('#words').send_keys('woman, no hat\n')
  page.until(lambda: page.all('.hit .id'))
  assert len(page.ids()) == 20
  assert page.text('#status').startswith('Best 20 of 24 crops')
  scores = [float(b.text) for b in page.all('.hit .score b')]
  assert scores == sorted(scores, reverse=True)
  first = page.one('.hit')
  reasons = [item.text for item in first.find_elements('css selector', '.reasons li')]
  assert len(reasons) == 2
  assert page.one('#next').is_displayed()
  assert 'Best to know next: upper color' in page.text('#next')
  assert 'null' not in page.text('body')
  page.until(
    lambda: page.driver.execute_script(
      'const i = document.querySelector(".hit img"); return i.complete && i.naturalWidth === 4'
    )
  )
  page.one('#more').click()
  page.until(lambda: len(page.ids()) == 24)
  assert not page.one('#more').is_displayed()


def test_the_next_question_can_be_answered_at_once(page):
  page.open('#a.hat=no&a.gender=female')
  page.until(lambda: page.one('#next').is_displayed())
  page.one('#next .answers button').click()
  page.until(lambda: 'upper color: red' in page.text('#said'))
  assert page.one('[name="a:upper_color"][value=red]').is_selected()
  assert 'a.upper_color=red' in page.fragment()


def test_a_link_restores_the_search_and_back_goes_back(page):
  page.open()
  page.pick('hat', 'yes')
  page.one('#words').send_keys('red top')
  page.driver.execute_script('document.getElementById("filters").open = true')
  page.one('#where').send_keys('camera in [1, 2]')
  page.search()
  link, ids = page.driver.current_url, page.ids()
  assert page.fragment() == 'q=red top&a.hat=yes&where=camera in [1, 2]'
  page.open('#a.gender=!female')
  assert page.ids() != ids
  assert page.one('[name="a:gender"][value=male]').is_selected()
  page.driver.get('about:blank')
  page.driver.get(link)
  page.wait()
  assert page.ids() == ids
  assert page.one('[name="a:hat"][value=yes]').is_selected()
  assert page.one('#where').get_property('value') == 'camera in [1, 2]'
  page.pick('hat', 'no')
  page.search()
  assert page.ids() != ids
  page.driver.back()
  page.until(lambda: page.ids() == ids)
  assert page.one('[name="a:hat"][value=yes]').is_selected()
  page.driver.forward()
  page.until(lambda: page.one('[name="a:hat"][value=no]').is_selected())


def test_more_like_a_crop(page):
  page.open('#a.hat=yes')
  first = page.ids()[0]
  page.one('.hit button').click()
  page.until(lambda: f'like={first}' in page.fragment() and page.ids() and first not in page.ids())
  assert f'crops like {first}' in page.text('#said')
  page.driver.refresh()
  page.wait()
  assert first not in page.ids()
  assert len(page.ids()) == 20


def test_an_upload_is_searched_for_and_is_no_part_of_the_link(page, people):
  page.open()
  page.one('#file').send_keys(str(people.crops / '005.png'))
  page.until(lambda: page.all('.hit.reference'))
  assert page.ids()[:2] == ['005.png', people.ids[5]]
  assert 'Your picture' in page.text('.hit.reference')
  page.until(
    lambda: page.driver.execute_script(
      'return document.querySelector(".reference img").naturalWidth'
    )
  )
  page.driver.refresh()
  page.wait()
  assert 'Choose it again' in page.text('#status')


def test_a_bad_upload_is_told(page, tmp_path):
  path = tmp_path / 'crop.png'
  path.write_bytes(b'no picture')
  page.open()
  page.one('#file').send_keys(str(path))
  page.until(lambda: 'not an image' in page.text('#error'))


def test_errors_are_told_and_the_next_search_goes_on(page):
  page.open('#q=purpel+hat')
  assert page.one('#error').get_attribute('role') == 'alert'
  assert "Did not understand 'purpel'" in page.text('#error')
  assert page.text('#status') == 'No results.'
  assert not page.all('.hit')
  page.open('#a.nonsense=1')
  assert "Unknown attribute: 'nonsense'" in page.text('#error')
  page.open('#a.hat=yes&min=much')
  assert 'a number such as' in page.text('#error')
  page.one('#clear').click()
  page.until(lambda: 'Whom are you looking for?' in page.text('#empty'))
  page.pick('hat', 'yes')
  page.search()
  assert len(page.ids()) == 20
  assert page.text('#error') == ''


def test_filters_that_leave_nobody_say_so(page):
  page.open('#a.hat=yes&where=camera+%3D%3D+1&min=1000')
  assert 'No crop fits the filters' in page.text('#empty')
  assert page.text('#filter-count') == '2 set'


def test_what_the_data_say_is_never_markup(page):
  page.open('#q=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E')
  assert '<img' in page.text('#error')
  assert not page.all('#error img')


def click_link(page, fragment):
  """Comes to the page by a link of another site."""
  link = urllib.parse.quote(f'<a id="x" href="{page.address}{fragment}">x</a>')
  page.driver.get(f'data:text/html,{link}')
  page.one('#x').click()
  page.until(lambda: page.driver.current_url.startswith(page.address))
  return page.wait()


def test_a_link_of_another_site_is_filled_in_and_searches_for_nothing(page, log):
  before = len(log.read_text().splitlines())
  click_link(page, '#a.hat=yes&where=camera+%3D%3D+1')
  assert 'A link asks for this' in page.text('#empty')
  assert 'hat: yes' in page.text('#empty')
  assert page.one('[name="a:hat"][value=yes]').is_selected()
  assert page.one('#where').get_property('value') == 'camera == 1'
  # Nor after a reload, in which the browser does not tell any more where it came from.
  page.driver.refresh()
  page.wait()
  # Nor where only the fragment changes, as another window could have it.
  page.driver.execute_script('location.hash = "#a.hat=no"')
  page.until(lambda: 'hat: no' in page.text('#empty'))
  assert not page.all('.hit')
  assert len(log.read_text().splitlines()) == before
  page.one('#propose').click()
  page.until(page.ids)
  page.driver.refresh()
  page.wait()
  assert len(page.ids()) == 20
  click_link(page, f'#like={urllib.parse.quote(page.ids()[0])}')
  assert not page.all('.hit')
  page.one('#propose').click()
  page.until(page.ids)
  assert len(log.read_text().splitlines()) == before + 3


NAMES = ('constructor', '__proto__', 'toString', 'hasOwnProperty')


@pytest.fixture(scope='module')
def oddly_named(depot, people, start_server, tmp_path_factory):
  """The address of a model whose attributes are called as what every object of JavaScript has."""
  from tfreid.data.attributes import Attribute, AttributeSchema

  attributes = tuple(Attribute(name, ('no', 'yes'), ((name, 2),)) for name in NAMES)
  schema = AttributeSchema('Odd', attributes, dict.fromkeys(NAMES, (1, 2)))
  made = depot.export_model(tmp_path_factory.mktemp('odd') / 'model', people.crops, schema)
  return start_server(f'--model={made.model}')


def test_attributes_may_be_called_as_what_objects_have(chromium, oddly_named):
  page = Page(chromium, oddly_named)
  page.open()
  assert [legend.text for legend in page.all('.pick legend')] == [
    name.replace('_', ' ').strip() for name in NAMES
  ]
  page.pick('constructor', 'yes')
  page.pick('__proto__', 'no')
  page.search()
  assert [chip.text.split(':')[1] for chip in page.all('#said li')] == [' yes', ' no']
  assert page.fragment() == 'a.constructor=yes&a.__proto__=no'
  # Nothing is annotated, and nothing that JavaScript has counts as if it were.
  assert page.all('.hit .reasons .yes, .hit .reasons .no') == []
  assert len(page.all('.hit')[0].find_elements('css selector', '.reasons .value')) == 2
  page.one('#next .answers button').click()
  page.until(lambda: len(page.all('#said li')) == 3)
  page.driver.refresh()
  page.wait()
  assert len(page.all('#said li')) == 3
  assert not [entry for entry in chromium.get_log('browser') if entry['level'] == 'SEVERE']


def test_everything_can_be_done_with_the_keyboard(page):
  from selenium.webdriver.common.keys import Keys

  page.open()
  page.keys(Keys.TAB)
  assert page.active().text == 'Skip to the results'
  # To the words, and through the pickers by their groups.
  page.keys(Keys.TAB)
  assert page.active().get_attribute('id') == 'words'
  seen = []
  for _ in range(12):
    page.keys(Keys.TAB)
    seen.append(page.active().get_attribute('name') or page.active().tag_name)
    if seen[-1] == 'a:hat':
      break
  assert seen == ['summary', 'a:gender', 'a:hat']
  page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
  assert page.active().get_property('value') == 'yes'
  outline = page.driver.execute_script(
    'return getComputedStyle(document.activeElement.nextElementSibling).outlineStyle'
  )
  assert outline == 'solid'
  page.keys(Keys.ENTER)
  page.until(lambda: page.ids())
  assert 'hat: yes' in page.text('#said')
  # A result's button, by tabbing on.
  for _ in range(40):
    page.keys(Keys.TAB)
    if (page.active().get_attribute('aria-label') or '').startswith('More like'):
      break
  wanted = page.active().get_attribute('aria-label').removeprefix('More like ')
  assert wanted == page.ids()[0]
  page.keys(Keys.ENTER)
  page.until(lambda: page.ids() and wanted not in page.ids())
  assert page.active().get_attribute('id') == 'results'


def test_everything_has_a_role_and_a_name(page):
  page.open('#a.hat=yes')
  tree = page.driver.execute_cdp_cmd('Accessibility.getFullAXTree', {})['nodes']
  nodes = [
    (node['role']['value'], node.get('name', {}).get('value', ''))
    for node in tree
    if not node.get('ignored')
  ]
  roles = {role for role, _ in nodes}
  assert {'banner', 'main', 'search', 'contentinfo', 'heading', 'status'} <= roles
  named = ('button', 'radio', 'checkbox', 'textbox', 'searchbox', 'combobox', 'link', 'image',
           'main', 'search')  # fmt: skip
  controls = [(role, name) for role, name in nodes if role in named]
  assert len(controls) > 30
  assert [role for role, name in controls if not name.strip()] == []
  assert ('textbox', 'Describe the person') in nodes
  assert ('group', 'hat') in nodes or ('radiogroup', 'hat') in nodes
  assert ('image', f'Crop {page.ids()[0]}') in nodes
  assert [name for role, name in nodes if role == 'heading'][0] == 'Find a person by description'
  ids = [element.get_attribute('id') for element in page.all('[id]')]
  assert len(ids) == len(set(ids))
  assert page.one('html').get_attribute('lang') == 'en'
  assert page.one('#status').get_attribute('aria-live') == 'polite'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read(page, scheme):
  """Contrast of every text with what is behind it, as WCAG 2 computes it: 4.5 at least."""
  page.driver.execute_cdp_cmd(
    'Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
  )
  page.open('#a.hat=yes')
  script = """
    const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
      for (let e = element; e; e = e.parentElement) {
        const color = parse(getComputedStyle(e).backgroundColor);
        if (color.length === 3 || color[3] === 1) return color;
        if (color[3] > 0) return null;
      }
      return [255, 255, 255];
    };
    const found = [];
    for (const e of document.querySelectorAll('body *')) {
      const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!own || !e.offsetParent || e.closest('.sr, .skip, .negate:has(:disabled)')) continue;
      const back = behind(e);
      if (!back) continue;
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(back)];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      found.push([contrast, e.className || e.tagName, e.textContent.trim().slice(0, 30)]);
    }
    return found;
  """
  found = page.driver.execute_script(script)
  page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': []})
  assert len(found) > 40
  assert [entry for entry in found if entry[0] < 4.5] == []


def test_a_narrow_page_fits_its_width(page):
  for width in (320, 390):
    page.driver.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride',
      {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': True},
    )
    page.open('#a.hat=yes&a.upper_color=!red&q=woman')
    assert len(page.ids()) == 20
    width_used = page.driver.execute_script('return document.documentElement.scrollWidth')
    assert width_used <= width
    assert page.driver.execute_script('return scrollY') > 100  # the results are in sight


def test_no_other_host_is_asked(page, address, people):
  page.driver.get_log('performance')
  page.open('#a.hat=yes')
  page.one('#file').send_keys(str(people.crops / '005.png'))
  page.until(lambda: page.all('.hit.reference'))
  asked = []
  for entry in page.driver.get_log('performance'):
    message = json.loads(entry['message'])['message']
    if message['method'] == 'Network.requestWillBeSent':
      asked.append(message['params']['request']['url'])
  assert any('/api/v1/search' in url for url in asked)
  assert any('/thumbnail' in url for url in asked)
  others = [url for url in asked if not url.startswith((address, 'blob:', 'about:', 'data:'))]
  assert others == []
  # And if the page wanted to, the browser would not let it.
  said = page.driver.execute_async_script(
    'const done = arguments[0];'
    'fetch("http://127.0.0.1:9/").then(() => done("sent"), (e) => done(String(e)));'
  )
  assert 'Failed to fetch' in said
  refused = [e['message'] for e in page.driver.get_log('browser') if e['level'] == 'SEVERE']
  assert any('Content Security Policy' in message for message in refused)


def test_a_purpose_is_asked_for_and_a_token(chromium, start_server, people, tmp_path):
  policy = tmp_path / 'policy.json'
  policy.write_text(
    '{"require_purpose": ["lost child"], "disabled_attributes": ["gender"], "uploads": false,'
    ' "max_results": 3, "blur_thumbnails": 3}'
  )
  tokens = tmp_path / 'tokens'
  tokens.write_text('ann:0123456789abcdef\n')
  tokens.chmod(0o600)
  log = tmp_path / 'audit.jsonl'
  address = start_server(
    f'--index={people.index}',
    f'--policy={policy}',
    f'--token_file={tokens}',
    f'--audit_log={log}',
  )
  page = Page(chromium, address)
  chromium.get('about:blank')
  chromium.get(f'{address}#a.hat=yes')
  page.until(lambda: page.one('#login').is_displayed())
  page.one('#token').send_keys('wrong wrong wrong\n')
  page.until(lambda: 'not known' in page.text('#error'))
  page.one('#token').clear()
  page.one('#token').send_keys('0123456789abcdef\n')
  page.until(lambda: chromium.execute_script('return document.body.dataset.ready === "true"'))
  page.wait()
  assert 'A purpose is needed' in page.text('#error')
  assert [legend.text for legend in page.all('.pick legend')] == ['hat', 'upper color']
  assert not page.one('#upload').is_displayed()
  assert 'Signed in as ann. Searches are logged. Pictures are blurred.' in page.text('#rules')
  chromium.execute_script('document.getElementById("purpose").value = "lost child"')
  page.search()
  assert len(page.ids()) == 3
  assert not page.one('#more').is_displayed()
  lines = [json.loads(line) for line in log.read_text().splitlines()]
  assert [(line['action'], line['outcome']) for line in lines] == [
    ('info', 'unauthorized'),
    ('session', 'unauthorized'),
    ('session', 'answered'),
    ('search', 'answered'),
  ]
  line = lines[-1]
  assert (line['who']['token'], line['purpose'], line['results']) == ('ann', 'lost child', 3)
  page.one('#sign-out').click()
  page.until(lambda: page.one('#login').is_displayed())
  assert chromium.get_cookie('tfreid_session') is None
  assert page.fragment() == ''
  lines = [json.loads(line) for line in log.read_text().splitlines()]
  assert ('sign_out', 'answered') in [(line['action'], line['outcome']) for line in lines]
  picture = tmp_path / 'shot.png'
  chromium.save_screenshot(str(picture))
  assert Image.open(picture).size[0] > 300


def test_a_served_model_goes_on_through_versions_and_without_its_server(
  chromium, start_server, serve_models, other
):
  models = serve_models('people')
  address = start_server(f'--server={models.server.rest}', '--refresh_seconds=0.1')
  page = Page(chromium, address)
  chromium.get_log('browser')
  page.open('#a.hat=yes')
  # Without --gallery no file of a crop is known: no broken pictures, requests for them, or room.
  assert len(page.ids()) == 20
  assert not page.all('.hit img')
  assert max(plate.size['width'] for plate in page.all('.hit .plate')) < 60
  assert page.text('.hit .rank') == '1'
  assert page.text('#source') == '24 crops in people, version 1'
  assert not [entry for entry in chromium.get_log('browser') if entry['level'] == 'SEVERE']
  page.one('.hit button').click()
  page.until(lambda: 'like=' in page.fragment() and len(page.ids()) == 20)
  page.open('#a.hat=yes')
  # The page was built for the version before; after its next search it is that of the new one.
  models.publish('people', other.model, 2)
  page.search()
  page.until(lambda: page.text('#source') == '24 crops in people, version 2')
  assert [legend.text for legend in page.all('.pick legend')] == ['sex', 'hat', 'bag']
  assert page.one('[name="a:hat"][value=yes]').is_selected()
  assert 'Best to know next' in page.text('#next')
  assert len(page.ids()) == 20
  page.pick('bag', 'yes')
  models.withdraw('people', 2, 1)
  page.search()
  page.until(lambda: page.all('.pick legend')[0].text == 'gender')
  assert page.one('[name="a:hat"][value=yes]').is_selected()
  models.stop()
  page.search()
  assert 'Cannot be searched now' in page.text('#error')
  assert page.text('#status') == 'No results.'
  models.start()
  page.until(lambda: page.search().ids())
  assert page.text('#error') == ''
