import { describe, expect, it } from 'vitest';
import type { User } from './api/types';
import { called } from './names';

const user = (externalId: string): User => ({
  id: externalId,
  externalId,
  displayName: 'Anjali Verma',
  timeZone: 'Asia/Kolkata',
  devices: [],
  provisional: false,
  addedByGateway: null,
});

describe('two wearers of one name', () => {
  it('are told apart by the clinic’s number', () => {
    expect(called(user('V1'), '')).toBe('Anjali Verma (V1)');
    expect(called(user('V2'), '')).not.toBe(called(user('V1'), ''));
  });
  it('have no empty brackets without a number', () => {
    expect(called(user(''), '')).toBe('Anjali Verma');
    expect(called(undefined, 'a wearer')).toBe('a wearer');
  });
});
