import { expect, test } from 'vitest';
import { readRoute } from './route';

test('an address names a wearer, a device, the boxes, the rules, or the overview', () => {
  expect(readRoute('#/wearer/a%20b')).toEqual({ at: 'wearer', id: 'a b' });
  expect(readRoute('#/device/d1?x')).toEqual({ at: 'device', id: 'd1' });
  expect(readRoute('#/boxes')).toEqual({ at: 'boxes', id: '' });
  expect(readRoute('#/rules')).toEqual({ at: 'rules', id: '' });
  for (const hash of ['', '#/', '#/wearer/', '#/boxesx', '#/elsewhere']) expect(readRoute(hash).at).toBe('overview');
});

test('an address that is not well encoded is no reason to fail', () => {
  expect(readRoute('#/wearer/%E0%A4%A')).toEqual({ at: 'wearer', id: '%E0%A4%A' });
});
